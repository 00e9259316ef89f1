"""`make engine GPU=h100` where there is no GPU: what is quantised, what is proved, what is said to remain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_diffgemma.checkpoint import HELD_OUT, Checkpoint
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.questions import read_questions
from trtllm_build import load_engine
from trtllm_build.bundle import Bundle
from trtllm_build.gates.quality import Quality, checked_loss
from trtllm_build.pipeline import build, quantize
from trtllm_build.plan import make_plan
from trtllm_build.quantization.recipe import CLASSES, Recipe, named_recipe
from trtllm_build.quantization.weight_files import compare_weights, count_shapes

FP8 = named_recipe("fp8")


@pytest.fixture(scope="module")
def checkpoint(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with held-out questions."""
    directory = Path(shutil.copytree(text_checkpoint, tmp_path_factory.mktemp("asked") / "checkpoint"))
    generation = directory / "generation_config.json"
    # a random model never agrees with itself: every canvas takes all of its steps
    generation.write_text(json.dumps(json.loads(generation.read_text()) | {"max_denoising_steps": 3}))
    with (directory / HELD_OUT).open("w", encoding="utf-8") as file:
        for text in ("red chair", "12 blue", "größe", "table lamp"):
            messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "green"}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return directory


@pytest.fixture(scope="module")
def built(checkpoint: Path) -> tuple[Path, dict, list[str]]:
    lines: list[str] = []
    out = checkpoint.parent / "h100"
    plan = make_plan(["gpu=h100", f"checkpoint={checkpoint}", f"out={out}", "largest_loss=1"])
    return out, build(plan, lines.append), lines


def test_the_manifest_claims_nothing_that_did_not_run(built: tuple[Path, dict, list[str]]) -> None:
    out, manifest, lines = built
    assert manifest["verified"] == "none"
    assert manifest["keeps_forms"] is True
    assert manifest["hardware"] == {"kind": "cuda", "name": "H100", "sm": 90}
    assert manifest["runtime"] == {}
    assert len(manifest["remaining"]) == 3
    assert all("`make engine GPU=h100 CHECKPOINT=" in what for what in manifest["remaining"])
    assert any("nothing ran on the device" in line for line in lines)
    with pytest.raises(FieldError, match=r"engine:hardware: 'built for an H100 GPU \(SM 90\)'.*no CUDA GPU"):
        load_engine(out)
    assert Bundle.open(out, elsewhere=True).manifest == manifest


def test_experts_attention_and_mlp_are_quantised_and_counted(built: tuple[Path, dict, list[str]]) -> None:
    _, manifest, lines = built
    counted = {c["name"]: c for c in manifest["measured"]["weights"]["classes"]}
    assert {n for n, c in counted.items() if c["dtype"] == "float8_e4m3fn"} == {"experts", "attention", "mlp"}
    assert set(counted) == {*CLASSES, "scales"}
    arch = Checkpoint(built[0].parent / "checkpoint").arch
    experts = 3 * arch.num_hidden_layers * arch.num_experts * arch.moe_intermediate_size * arch.hidden_size
    assert counted["experts"]["parameters"] == counted["experts"]["bytes"] == experts
    assert any(f"experts      {experts:>14,} parameters in float8_e4m3fn" in line for line in lines)


def test_counting_shapes_is_counting_files(built: tuple[Path, dict, list[str]]) -> None:
    arch = Checkpoint(built[0].parent / "checkpoint").arch
    assert [vars(c) for c in count_shapes(arch, FP8)] == built[1]["measured"]["weights"]["classes"]


def test_every_quantised_class_is_within_the_formats_error(built: tuple[Path, dict, list[str]]) -> None:
    errors = {e["name"]: e for e in built[1]["measured"]["weights"]["errors"]}
    assert set(errors) == {"experts", "attention", "mlp"}
    assert all(0.5 < e["worst"] <= 1 + 1e-5 and 0.01 < e["relative"] < 0.04 for e in errors.values())


def test_a_weight_that_is_further_off_is_named(built: tuple[Path, dict, list[str]], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built[0] / "weights", tmp_path / "weights"))
    path = folder / "layer_001.safetensors"
    tensors = load_file(path)
    tensors["experts_down.scale"][3, 5] *= 1.5
    save_file(tensors, path)
    checkpoint = Checkpoint(built[0].parent / "checkpoint")
    compare_weights(checkpoint, folder, [0, 2])
    with pytest.raises(FieldError, match=r"weights:model.decoder.layers.1.experts.down_proj: .*times float8_e4m3fn"):
        compare_weights(checkpoint, folder, [1])


def test_parity_and_quality_are_computed_with_the_bundles_own_numbers(built: tuple[Path, dict, list[str]]) -> None:
    measured = built[1]["measured"]
    assert measured["on"] == "CPU"
    assert 0 < measured["parity"]["mean_relative"] < 0.5
    assert measured["quality"]["questions"] == 4
    assert measured["quality"]["fp32"]["steps_per_canvas"] > 1
    assert {"bf16", "fp8", "loss", "largest_loss"} < set(measured["quality"])


def test_losing_more_than_the_bound_is_an_error() -> None:
    assert checked_loss(Quality(0.98, 2.0), Quality(0.97, 2.1), 0.02) == 0.01
    assert checked_loss(Quality(0.9, 2.0), Quality(0.95, 2.0), 0.0) == -0.05
    with pytest.raises(FieldError, match=r"quality:exact_match: \"0.03 less than float32's\".* precision=bf16"):
        checked_loss(Quality(0.98, 2.0), Quality(0.95, 2.0), 0.02)


def test_the_same_build_again_is_a_no_op(built: tuple[Path, dict, list[str]]) -> None:
    out, manifest, _ = built
    lines: list[str] = []
    plan = make_plan(["gpu=h100", f"checkpoint={out.parent / 'checkpoint'}", f"out={out}", "largest_loss=1"])
    assert build(plan, lines.append) == manifest
    assert lines[-1].endswith("is up to date: nothing to do")


def test_a_stopped_build_goes_on_with_the_next_layer(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    import trtllm_build.pipeline as pipeline

    plan = make_plan(["gpu=h100", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}", "largest_loss=1"])
    seen: list[str] = []

    def note(line: str) -> None:
        seen.append(line)
        if "2/4" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(plan, note)
    monkeypatch.setattr(pipeline, "quantize", quantize)
    lines: list[str] = []
    build(plan, lines.append)
    written = [line for line in lines if "/4 " in line]
    assert [line.split()[2] for line in written] == ["3/4", "4/4"]


def test_the_unified_layout_lies_beside_the_bundle(built: tuple[Path, dict, list[str]]) -> None:
    folder = built[0].with_name("h100-hf")
    config = json.loads((folder / "hf_quant_config.json").read_text())
    assert config["quantization"]["quant_algo"] == "FP8_PER_CHANNEL_PER_TOKEN"
    weights = load_file(next(folder.glob("*.safetensors")))
    assert weights["model.decoder.layers.0.experts.3.gate_proj.weight"].dtype == torch.float8_e4m3fn


def test_static_scales_are_found_with_conversations(checkpoint: Path, tmp_path: Path) -> None:
    given = [
        "gpu=h100",
        "precision=fp8_static",
        f"checkpoint={checkpoint}",
        f"out={tmp_path / 'out'}",
        "largest_loss=1",
    ]
    with pytest.raises(FieldError, match=r"calibration: None cannot be used; allowed: a JSONL file .* precision=fp8"):
        make_plan(given)
    manifest = build(make_plan([*given, f"calibration={checkpoint / HELD_OUT}"]), lambda line: None)
    scales = json.loads((tmp_path / "out" / "input_scales.json").read_text())
    assert len(scales) == 7 * Checkpoint(checkpoint).arch.num_hidden_layers
    assert scales["layer_000.experts_down_weighted"] < scales["layer_000.experts_down"]
    assert all(s > 0 for s in scales.values())
    weights = load_file(tmp_path / "out" / "weights" / "layer_000.safetensors")
    scale = weights["experts_gate_up.scale"]
    assert torch.equal(scale, scale[:, :1].expand_as(scale))
    assert manifest["measured"]["quality"]["fp8_static"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantize": ("attention", "mlp")}, r"precision.quantize: .*a list with experts in it: they are 90 %"),
        ({"quantize": ("experts", "router")}, r"precision.quantize: \['router'\] .* allowed: experts, attention, mlp"),
        ({"quantize": ("experts", "attention")}, r"precision.keep.mlp: '' .*a reason for each class"),
        ({"keep": {**FP8.keep, "router": " "}}, r"precision.keep.router: ' ' .*a reason for each class"),
        ({"keep": {**FP8.keep, "experts": "no"}}, r"precision.keep.experts: 'no' .*and for no other"),
        ({"format": "fp6"}, r"precision.format: 'fp6' .* allowed: fp8"),
        ({"format": None}, r"precision.quantize: .* allowed: \[\] without a format"),
        ({"dtype": "float16"}, r"precision.dtype: 'float16' .* allowed: float32, bfloat16"),
        ({"expert_scales": "block"}, r"precision.expert_scales: 'block' .* allowed: channel, static"),
    ],
)
def test_recipes_that_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        Recipe(**(vars(FP8) | changes))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["gpu=h100", "precision=fp32"], r"precision: 'fp32' .* allowed: fp8, bf16, fp8_static for gpu=h100"),
        (["gpu=h100", "largest_loss=2"], "largest_loss: 2 .* a number from 0 to 1"),
        (["gpu=h100", "calibration=x.jsonl"], "calibration: 'x.jsonl' .* precision=fp8 calibrates nothing"),
        (["gpu=h100", "unified=maybe"], "unified: 'maybe' .* true or false"),
        (["gpu=h100", "weights=random"], "checkpoint: .* none with weights=random"),
        (["gpu=h100", "weights=zeros"], "weights: 'zeros' .* random, or nothing"),
    ],
)
def test_plans_that_are_refused(overrides: list[str], message: str, checkpoint: Path) -> None:
    with pytest.raises(FieldError, match=message):
        make_plan([*overrides, f"checkpoint={checkpoint}"])


def test_random_weights_are_made_where_they_run(tmp_path: Path) -> None:
    lines: list[str] = []
    manifest = build(make_plan(["gpu=h100", "weights=random", f"out={tmp_path / 'out'}"]), lines.append)
    (bytes_line,) = [line for line in lines if "a denoising step reads" in line]
    assert bytes_line.endswith("reads 26.09 GB of weights: 7.79 ms at the 3,350 GB/s of h100's memory")
    assert manifest["checkpoint"] == {"name": "random_diffusion_gemma_26b_a4b", "random": True}
    assert sum(e["bytes"] for e in manifest["files"].values()) < 10_000
    assert Bundle.open(tmp_path / "out", elsewhere=True).spec.random_precision == "fp8"
    for given, message in ((["gpu=cpu"], "weights: 'random' .*cuda backend"), (["gpu=h100", "model=x"], "model: 'x'")):
        with pytest.raises(FieldError, match=message):
            make_plan([*given, "weights=random"])


def test_questions_that_are_none_are_named(tmp_path: Path) -> None:
    good = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    (tmp_path / "q.jsonl").write_text(good + '{"text": "b"}\n')
    with pytest.raises(FieldError, match=r"q.jsonl:2: messages: None.*a list of messages"):
        read_questions(tmp_path / "q.jsonl")
