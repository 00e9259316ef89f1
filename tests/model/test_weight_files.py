"""Which file a tensor is read from, and what of a checkpoint's files is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from nemo_diffgemma.checkpoint import Checkpoint, tied_names
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.hf_config import write_config
from nemo_diffgemma.weight_files import INDEX, SINGLE, Stored
from tests.support import random_architecture, random_checkpoint, random_tensors, small_architecture
from trtllm_build.gates.reference import SMALLEST_VISION

ARCH = small_architecture()
EMBEDDING, NORM = "model.decoder.embed_tokens.weight", "model.decoder.norm.weight"
PROJECTION = "model.decoder.layers.0.self_attn.q_proj.weight"
COPY = "model.encoder.language_model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """One file of weights, without an index."""
    folder = random_checkpoint(tmp_path / "checkpoint", ARCH)
    (shard,) = folder.glob("model-*.safetensors")
    shard.rename(folder / SINGLE)
    (folder / INDEX).unlink()
    return folder


def rewrite(folder: Path, **files: dict[str, Tensor]) -> None:
    """Files of weights in place of those there are."""
    for path in folder.glob("*.safetensors"):
        path.unlink()
    for name, tensors in files.items():
        save_file({n: t.clone() for n, t in tensors.items()}, folder / f"{name}.safetensors")


def write_index(folder: Path, where: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


# -- tensors that are one in the model -------------------------------------------------------------------------------


def test_tied_names_are_those_of_transformers() -> None:
    for seed in range(4):
        arch = random_architecture(seed)
        config = DiffusionGemmaConfig(**write_config(arch.with_changes(vision_config=SMALLEST_VISION)))
        with torch.device("meta"):
            model = DiffusionGemmaForBlockDiffusion(config)
        assert tied_names(arch) == model.all_tied_weights_keys


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_copy_is_passed_over(checkpoint: Path, dtype: torch.dtype) -> None:
    tensors = {name: t.bfloat16().float() for name, t in load_file(checkpoint / SINGLE).items()}
    copies = {other: tensors[name].to(dtype) for other, name in tied_names(ARCH).items()}
    rewrite(checkpoint, model=tensors | copies)
    found = Checkpoint(checkpoint)
    assert torch.equal(found.tensor(EMBEDDING), tensors[EMBEDDING])
    assert set(found.text_shapes) == set(tensors)


@pytest.mark.parametrize(("name", "other"), [(EMBEDDING, "lm_head.weight"), (PROJECTION, COPY)])
def test_a_copy_of_other_numbers_is_named(checkpoint: Path, name: str, other: str) -> None:
    tensors = load_file(checkpoint / SINGLE)
    changed = tensors[name].clone()
    changed[-1, -1] += 1e-3
    for copy in (changed, tensors[name][:-1], tensors[name].bfloat16()):
        rewrite(checkpoint, model=tensors | {other: copy})
        with pytest.raises(FieldError, match=rf"checkpoint:{other}: 'other numbers than {name}' cannot be used"):
            Checkpoint(checkpoint)


def test_a_tensor_under_another_name_alone_is_that_tensor(checkpoint: Path) -> None:
    """As transformers reads it."""
    tensors = load_file(checkpoint / SINGLE)
    moved = {"lm_head.weight": tensors.pop(EMBEDDING), COPY: tensors.pop(PROJECTION)}
    rewrite(checkpoint, model=tensors | moved)
    found = Checkpoint(checkpoint)
    assert torch.equal(found.tensor(EMBEDDING), moved["lm_head.weight"])
    assert torch.equal(found.tensor(PROJECTION), moved[COPY])
    embedding = "model.encoder.language_model.embed_tokens.weight"
    rewrite(checkpoint, model=tensors | moved | {embedding: moved["lm_head.weight"] + 1})
    with pytest.raises(FieldError, match=rf"checkpoint:{embedding}: 'other numbers than lm_head.weight'"):
        Checkpoint(checkpoint)


def test_large_tensors_are_compared_part_by_part(tmp_path: Path) -> None:
    wide = torch.zeros(2**13, 2**12)
    other = wide.clone()
    other[-1, -1] = 1
    save_file({"a": wide, "b": other, "c": wide.bfloat16(), "d": torch.tensor(0.0)}, tmp_path / SINGLE)
    a, b, c, d = (
        Stored(tmp_path / SINGLE, n, "", tuple(s)) for n, s in zip("abcd", [wide.shape] * 3 + [()], strict=True)
    )
    assert len(list(a.parts())) == 2
    assert a.equals(c)
    assert not a.equals(b)
    assert d.equals(d)


# -- the index -------------------------------------------------------------------------------------------------------


def test_the_index_says_which_file_a_tensor_is_read_from(checkpoint: Path) -> None:
    right, stale = random_tensors(ARCH, 1), random_tensors(ARCH, 2)
    names = sorted(right)
    halves = {n: right[n] for n in names[::2]}, {n: right[n] for n in names[1::2]}
    rewrite(checkpoint, a=halves[0] | {n: stale[n] for n in halves[1]}, b=halves[1] | {"gone": torch.ones(2)})
    write_index(checkpoint, {n: "a.safetensors" if n in halves[0] else "b.safetensors" for n in names})
    found = Checkpoint(checkpoint)
    assert all(torch.equal(found.tensor(n), right[n]) for n in names)
    assert set(found.passed_over) == {"gone", *halves[1]}
    before = found.sha256
    write_index(checkpoint, dict.fromkeys(names, "a.safetensors"))
    assert Checkpoint(checkpoint).sha256 != before
    assert torch.equal(Checkpoint(checkpoint).tensor(names[1]), stale[names[1]])


def test_files_may_be_links_and_lie_in_folders(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (checkpoint / SINGLE).rename(tmp_path / "blobs" / "0a1b")
    (checkpoint / "weights").mkdir()
    (checkpoint / "weights" / SINGLE).symlink_to("../../blobs/0a1b")
    write_index(checkpoint, dict.fromkeys(random_tensors(ARCH, 0), f"weights/{SINGLE}"))
    assert torch.equal(Checkpoint(checkpoint).tensor(NORM), random_tensors(ARCH, 0)[NORM])


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (None, rf"checkpoint:{INDEX}: None .* a JSON object with \"weight_map\""),
        ({}, rf"checkpoint:{INDEX}: \{{\}} .* a JSON object with"),
        ([EMBEDDING], rf"checkpoint:{INDEX}: \[.* a JSON object with"),
        ({EMBEDDING: "../a.safetensors"}, rf"checkpoint:{INDEX}:{EMBEDDING}: '../a.safetensors' .* a file in the"),
        ({EMBEDDING: "a/../../a.safetensors"}, "a file in the checkpoint's directory"),
        ({EMBEDDING: "/etc/passwd"}, "'/etc/passwd' .* a file in the checkpoint's directory"),
        ({EMBEDDING: 3}, rf"checkpoint:{INDEX}:{EMBEDDING}: 3"),
        ({EMBEDDING: ""}, "a file in the checkpoint's directory"),
        ({EMBEDDING: "weights", NORM: SINGLE}, "checkpoint: 'weights' .* every shard"),
        ({EMBEDDING: "b.safetensors", NORM: SINGLE}, "checkpoint: 'b.safetensors' .* every shard"),
        ({EMBEDDING: SINGLE, "lm_head.bias": SINGLE}, f"missing tensor: 'lm_head.bias' .* in {SINGLE}, where {INDEX}"),
        (
            {EMBEDDING: SINGLE},
            "missing tensor: 'model.decoder.layers.0.*and [0-9]+ more' .* every tensor of its config",
        ),
    ],
)
def test_an_index_that_is_refused(checkpoint: Path, where: Any, message: str) -> None:
    (checkpoint / "weights").mkdir()
    write_index(checkpoint, where)
    with pytest.raises(FieldError, match=message) as caught:
        Checkpoint(checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b"null", b'"weight_map"', b"[" * 100_000])
def test_an_index_that_is_none(checkpoint: Path, text: bytes) -> None:
    (checkpoint / INDEX).write_bytes(text)
    with pytest.raises(FieldError, match=rf"checkpoint:{INDEX}: .* fix: download or export the checkpoint again"):
        Checkpoint(checkpoint)


def test_an_index_beside_another_file_of_weights(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / SINGLE)
    save_file(tensors, checkpoint / "a.safetensors")
    write_index(checkpoint, dict.fromkeys(tensors, "a.safetensors"))
    with pytest.raises(FieldError, match=rf"checkpoint: '.*: {SINGLE} and {INDEX}, which does not name it' .* one of"):
        Checkpoint(checkpoint)
    write_index(checkpoint, dict.fromkeys(tensors, "a.safetensors") | {NORM: SINGLE})
    Checkpoint(checkpoint)


# -- quantised weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_quantised_weights_are_refused(checkpoint: Path, dtype: torch.dtype) -> None:
    tensors = load_file(checkpoint / SINGLE)
    rewrite(checkpoint, model=tensors | {PROJECTION: tensors[PROJECTION].to(dtype)})
    with pytest.raises(FieldError, match=rf"checkpoint:dtype of {PROJECTION}: .* allowed: F64, F32, F16, BF16"):
        Checkpoint(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "modelopt"}}))
    with pytest.raises(
        FieldError, match="config.json:quantization_config: .*name the checkpoint that it was made from"
    ):
        Checkpoint(checkpoint)


def test_a_vision_tower_that_transformers_does_not_build(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    for vision in ({"model_type": "nonsense"}, {"hidden_size": "8"}, SMALLEST_VISION | {"hidden_size": 0}):
        (checkpoint / "config.json").write_text(json.dumps(config | {"vision_config": vision}))
        with pytest.raises(FieldError, match=r"config.json:vision_config: .*|missing tensor"):
            Checkpoint(checkpoint)


@pytest.mark.parametrize("text", ["{", "[]", "3", "\xff"])
def test_a_generation_config_that_is_none(checkpoint: Path, text: str) -> None:
    (checkpoint / "generation_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FieldError, match=r"generation_config.json: .* allowed: a JSON object"):
        _ = Checkpoint(checkpoint).generation_config


# -- numbers that are not usable -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "number", "said"),
    [
        (torch.float64, 1e39, rf"^checkpoint:{NORM}: 1e\+39 .*at most 3.390e\+38"),
        (torch.float64, -1e300, rf"^checkpoint:{NORM}: 1e\+300 "),
        (torch.float32, 3.4e38, rf"^checkpoint:{NORM}: 3.39.*e\+38 .*infinite in bfloat16"),
        (torch.float16, float("inf"), rf"^checkpoint:{NORM}: 'NaN or infinity'"),
        (torch.float32, float("nan"), rf"^checkpoint:{NORM}: 'NaN or infinity'"),
    ],
)
def test_a_number_that_the_output_does_not_reach(
    dtype: torch.dtype, number: float, said: str, checkpoint: Path
) -> None:
    tensors = load_file(checkpoint / SINGLE)
    tensors[NORM] = tensors[NORM].to(dtype)
    tensors[NORM][3] = number
    rewrite(checkpoint, model=tensors)
    with pytest.raises(FieldError, match=said):
        Checkpoint(checkpoint).tensor(NORM)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_dtype_that_weights_are_not_stored_in(dtype: torch.dtype, checkpoint: Path) -> None:
    tensors = load_file(checkpoint / SINGLE)
    tensors[NORM] = torch.ones(tensors[NORM].shape).to(dtype)
    rewrite(checkpoint, model=tensors)
    with pytest.raises(FieldError, match=rf"^checkpoint:dtype of {NORM}: .*allowed: F64, F32, F16, BF16; "):
        Checkpoint(checkpoint)
