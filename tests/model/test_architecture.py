"""The architecture: round trips, both spellings of config.json, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import DiffusionGemmaConfig

from nemo_diffgemma.architecture import GLOBAL, SLIDING, Architecture
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.hf_config import load_architecture, read_config, write_config
from tests.support import random_architecture, small_architecture


@pytest.mark.parametrize("seed", range(8))
def test_round_trip(seed: int) -> None:
    arch = random_architecture(seed)
    assert read_config(json.loads(json.dumps(write_config(arch)))) == arch
    assert Architecture.from_dict(json.loads(json.dumps(arch.as_dict()))) == arch


def test_what_transformers_writes_is_read(tmp_path: Path) -> None:
    """transformers saves global shapes as per_layer_config; we write the spelling older ones read too."""
    arch = small_architecture()
    DiffusionGemmaConfig(**write_config(arch)).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "per_layer_config" in written["text_config"]
    assert load_architecture(tmp_path) == arch


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hidden_size": 0}, "model.hidden_size: 0 cannot be used; allowed: an integer >= 1"),
        ({"num_experts": True}, "model.num_experts: True"),
        ({"top_k_experts": 9}, "model.top_k_experts: 9 cannot be used; allowed: at most 8"),
        ({"num_key_value_heads": 3}, "allowed: a divisor of 4"),
        ({"layer_types": (SLIDING, GLOBAL, SLIDING)}, "a last entry of full_attention"),
        ({"layer_types": (GLOBAL,)}, "allowed: 3 entries"),
        ({"layer_types": ("local", SLIDING, GLOBAL)}, "model.layer_types: 'local'"),
        ({"head_dim": 7}, "an even integer"),
        ({"sliding_window": 1}, "an integer >= 2"),
        ({"canvas_length": 256}, "less than max_position_embeddings 256"),
        ({"eos_token_ids": (97,)}, "allowed: 0 to 96"),
        ({"global_partial_rotary_factor": 0.0}, "in (0, 1]"),
    ],
)
def test_refused(changes: dict, text: str) -> None:
    with pytest.raises(FieldError) as error:
        small_architecture(**changes)
    assert text in str(error.value)


def test_unknown_and_missing_fields() -> None:
    values = small_architecture().as_dict()
    with pytest.raises(FieldError, match="model.num_expert: 4 cannot be used; allowed: .*num_experts"):
        Architecture.from_dict(values | {"num_expert": 4})
    del values["num_experts"]
    with pytest.raises(FieldError, match="set model.num_experts"):
        Architecture.from_dict(values)


@pytest.mark.parametrize(
    ("field", "value"),
    [("attention_bias", True), ("hidden_activation", "silu"), ("use_bidirectional_attention", "all")],
)
def test_what_is_not_computed_here_is_refused(field: str, value: object) -> None:
    config = write_config(small_architecture())
    config["text_config"][field] = value
    with pytest.raises(FieldError, match=f"config.json:text_config.{field}: {value!r}"):
        read_config(config)


def test_another_rope_is_refused() -> None:
    config = write_config(small_architecture())
    config["text_config"]["rope_parameters"][GLOBAL]["rope_type"] = "yarn"
    with pytest.raises(FieldError, match="rope_parameters.full_attention"):
        read_config(config)
