"""config.json as transformers means it: every spelling, null and absent fields, and what is refused by name."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, GenerationConfig

from nemo_diffgemma.architecture import GLOBAL, SLIDING
from nemo_diffgemma.checkpoint import VISION_PREFIXES, text_tensors
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.hf_config import load_architecture, read_config, write_config
from tests.support import small_architecture
from trtllm_build.gates.reference import SMALLEST_VISION

Shapes = dict[str, tuple[int, ...]]
PLAIN = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    GLOBAL: {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
}


def written(**text: Any) -> dict[str, Any]:
    """The config of a small model with a vision tower, and changes of its text_config; ``...`` leaves a field out."""
    config = write_config(small_architecture(vision_config=SMALLEST_VISION))
    config["text_config"] |= text
    config["text_config"] = {name: value for name, value in config["text_config"].items() if value is not ...}
    return copy.deepcopy(config)


def of_transformers(config: dict[str, Any]) -> Shapes | None:
    """Names and shapes of the text tensors that transformers saves; None when it cannot build the model."""
    try:
        with torch.device("meta"):
            model = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(**copy.deepcopy(config)))
    except Exception:
        return None
    left_out = (*model.all_tied_weights_keys, *VISION_PREFIXES)
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if not name.startswith(left_out)}


def of_ours(config: dict[str, Any]) -> Shapes | None:
    """The same of what is read here; None when it is refused."""
    try:
        arch = read_config(config)
    except FieldError as error:
        if not error.field.startswith("config.json"):
            raise
        return None
    return text_tensors(arch)


_overrides = st.fixed_dictionaries(
    {}, optional={"head_dim": st.sampled_from((8, 16, 24)), "num_key_value_heads": st.sampled_from((1, 2, 4))}
)


@st.composite
def configs(draw: Any) -> tuple[dict[str, Any], str]:
    """A config.json, and how it is to be written."""
    layers = draw(st.integers(1, 4))
    kinds = [draw(st.sampled_from((SLIDING, GLOBAL))) for _ in range(layers - 1)] + [GLOBAL]
    text: dict[str, Any] = {
        "num_hidden_layers": layers,
        "layer_types": kinds,
        "head_dim": draw(st.sampled_from((8, 16, ...))),
        "num_key_value_heads": draw(st.sampled_from((1, 2, 4, ...))),
        "global_head_dim": draw(st.sampled_from((8, 16, ...))),
        "num_global_key_value_heads": draw(st.sampled_from((1, 2, None, ...))),
    }
    spelling = draw(st.sampled_from(("older", "by kind", "any layer", "all alike")))
    if spelling == "by kind":
        of_kind = {kind: draw(_overrides) for kind in (SLIDING, GLOBAL)}
        text["per_layer_config"] = {str(i): of_kind[kind] for i, kind in enumerate(kinds)}
    elif spelling == "any layer":
        numbers = st.integers(-1, layers).map(lambda i: draw(st.sampled_from((f"{i}", f"{i:02d}"))))
        text["per_layer_config"] = draw(st.dictionaries(numbers, _overrides, max_size=layers))
    elif spelling == "all alike":
        text["per_layer_config"] = draw(st.sampled_from(({}, None)))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "attention_dropout", "use_bidirectional_attention"):
        value = draw(st.sampled_from(("as it is", None, ...)))
        if value != "as it is":
            text[name] = value
    for name in ("layer_types", "rope_parameters"):
        if draw(st.integers(0, 9)) == 0:
            text[name] = draw(st.sampled_from((None, ...)))
    return written(**text), draw(st.sampled_from(("as it is", "to_dict", "save_pretrained", "explicit")))


def saved(config: dict[str, Any], how: str) -> dict[str, Any] | None:
    """The config as transformers saves it; None when it cannot."""
    if how == "as it is":
        return config
    try:
        made = DiffusionGemmaConfig(**copy.deepcopy(config))
        if how == "explicit":
            made.text_config.serialize_explicit_per_layer_config = True
        if how == "to_dict":
            return dict(json.loads(json.dumps(made.to_dict(), default=str)))
        with TemporaryDirectory() as folder:
            made.save_pretrained(folder)
            return dict(json.loads((Path(folder) / "config.json").read_text()))
    except Exception:
        return None


@given(configs())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_names_and_shapes_are_those_of_transformers(drawn: tuple[dict[str, Any], str]) -> None:
    """Whatever transformers builds a model of is read, tensor by tensor; what it does not is refused."""
    config = saved(*drawn)
    if config is None:
        return
    expected, found = of_transformers(config), of_ours(config)
    event(f"{'built' if expected else 'not built'} by transformers, written {drawn[1]}")
    assert found == expected


@pytest.mark.parametrize("config", [written(per_layer_config={}), written(per_layer_config=None)])
def test_global_layers_of_the_sliding_ones_shapes(config: dict[str, Any]) -> None:
    """transformers 5.18 writes ``{}`` where no layer differs, and then reads no ``global_head_dim``."""
    arch = read_config(config)
    assert (arch.global_head_dim, arch.num_global_key_value_heads) == (arch.head_dim, arch.num_key_value_heads)


def test_shapes_of_sliding_layers_may_be_overridden_too() -> None:
    same = {"head_dim": 24, "num_key_value_heads": 4}
    arch = read_config(written(per_layer_config={"0": same, "1": same}))
    assert (arch.head_dim, arch.num_key_value_heads) == (24, 4)
    assert (arch.global_head_dim, arch.num_global_key_value_heads) == (8, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            {"per_layer_config": {"0": {"head_dim": 24}}},
            "text_config.per_layer_config: '2 x 24 and 2 x 8' cannot be used; allowed: one shape for all sliding",
        ),
        ({"per_layer_config": {"2": {"intermediate_size": 7}}}, "text_config.per_layer_config: 'intermediate_size'"),
        ({"per_layer_config": {"2": {"skip": ["mlp"]}}}, r"per_layer_config.2.skip: \['mlp'\]"),
        ({"per_layer_config": {"9": {"head_dim": 8}}}, r"per_layer_config` keys must be integer layer indices"),
        ({"per_layer_config": [1]}, "text_config: .*cannot be used; allowed: what transformers takes"),
        ({"per_layer_config": {"2": {"num_key_value_heads": None}}}, "num_key_value_heads"),
        ({"per_layer_config": {"2": {"head_dim": 7}}}, "text_config.global_head_dim: 7 .* an even integer"),
        ({"global_head_dim": None}, "expected int, got NoneType"),
        ({"hidden_size": "64"}, "text_config.hidden_size: '64' cannot be used; .* expected int, got str"),
        ({"hidden_size": None}, "text_config.hidden_size: None cannot be used"),
        ({"num_experts": ...}, "text_config.num_experts: None cannot be used; allowed: an integer >= 1"),
        ({"final_logit_softcapping": None}, "text_config.final_logit_softcapping: None .* a number > 0"),
        ({"rms_norm_eps": float("nan")}, "text_config.rms_norm_eps: nan .* a number > 0"),
        ({"layer_types": []}, "text_config: .*num_hidden_layers"),
        ({"layer_types": ["chunked_attention", SLIDING, GLOBAL]}, "text_config.layer_types: 'chunked_attention'"),
        ({"rope_parameters": {}}, "rope_parameters.sliding_attention: None"),
        ({"rope_parameters": {GLOBAL: PLAIN[GLOBAL]}}, "rope_parameters.sliding_attention: None"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_parameters.sliding_attention: None"),
        ({"rope_parameters": PLAIN | {SLIDING: None}}, "rope_parameters.sliding_attention: None"),
        ({"rope_parameters": PLAIN | {GLOBAL: {"rope_type": "yarn"}}}, "full_attention.rope_type: 'yarn'"),
        ({"rope_parameters": PLAIN | {GLOBAL: PLAIN[GLOBAL] | {"factor": 8.0}}}, "rope_parameters.full_attention"),
        ({"rope_parameters": PLAIN | {GLOBAL: PLAIN[SLIDING] | {"partial_rotary_factor": 0.5}}}, "full_attention"),
        ({"rope_parameters": PLAIN | {SLIDING: {"rope_type": "default"}}}, "rope_parameters.sliding_attention"),
        ({"rope_scaling": None}, "text_config.rope_scaling: None cannot be used; allowed: rope_parameters"),
        ({"partial_rotary_factor": 0.5}, "text_config.partial_rotary_factor: 0.5"),
        ({"eos_token_id": [1, 97]}, r"text_config.eos_token_ids: \(1, 97\) .* allowed: 0 to 96"),
        ({"dtype": "bogus"}, "text_config: .*bogus"),
    ],
)
def test_what_transformers_does_not_take_or_this_project_does_not_compute(text: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message) as caught:
        read_config(written(**text))
    assert "\n" not in str(caught.value)
    assert re.match(r"config.json:text_config.* fix: correct config.json", str(caught.value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tie_word_embeddings": False}, "config.json:tie_word_embeddings: False .* share their weights"),
        ({"canvas_length": None}, "config.json:canvas_length: None .* an integer >= 1"),
        ({"canvas_length": "8"}, "config.json:canvas_length: '8' cannot be used"),
        ({"text_config": None}, "config.json:text_config.num_experts: None"),
        ({"text_config": [1]}, "config.json:text_config: .*an object"),
        ({"vision_config": "none"}, "config.json:vision_config: 'none' .*an object"),
        ({"eos_token_id": "1"}, "config.json:eos_token_id: '1' .* a token id, or null"),
        ({"model_type": "gemma3"}, "config.json:model_type: 'gemma3'"),
    ],
)
def test_of_the_outer_config(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        read_config(written() | change)


@pytest.mark.parametrize("outer", [..., None, 7, [7, 8]])
@pytest.mark.parametrize("inner", [..., None, 3, [3, 4]])
def test_ends_of_sequence_are_looked_up_as_transformers_does(outer: Any, inner: Any) -> None:
    config = written(eos_token_id=inner) | ({} if outer is ... else {"eos_token_id": outer})
    found = GenerationConfig.from_model_config(DiffusionGemmaConfig(**copy.deepcopy(config))).eos_token_id
    expected = found if isinstance(found, list) else [] if found is None else [found]
    arch = read_config(config)
    assert list(arch.eos_token_ids) == expected
    assert read_config(write_config(arch)) == arch


def test_another_rope_of_the_same_numbers() -> None:
    """A default RoPE is a proportional one that turns the whole head."""
    rope = {SLIDING: PLAIN[SLIDING] | {"rope_type": "proportional"}, GLOBAL: {"rope_theta": 5000.0}}
    arch = read_config(written(rope_parameters=rope))
    assert (arch.rope_theta, arch.global_rope_theta, arch.global_partial_rotary_factor) == (10_000.0, 5000.0, 1.0)


def test_the_users_config_is_left_as_it_is() -> None:
    config = written(layer_types=[SLIDING, GLOBAL, SLIDING], rope_parameters={**PLAIN, SLIDING: {"rope_theta": 9.0}})
    before = copy.deepcopy(config)
    assert read_config(config).layer_types == (SLIDING, GLOBAL, GLOBAL)
    assert config == before


@pytest.mark.parametrize(
    "text", ["[1, 2]", "{", '"text"', "\xff", "[" * 100_000], ids=["list", "cut", "string", "bytes", "deep"]
)
def test_what_is_no_config(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FieldError, match=r"config\.json: .* allowed: a JSON object; fix: download or export"):
        load_architecture(tmp_path)
