"""`make engine GPU=dgx-spark` and `GPU=rtx5090` where neither is: a graph checked, a plan compiled, no more claimed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nemo_diffgemma.checkpoint import CALIBRATION, HELD_OUT
from nemo_diffgemma.errors import FieldError
from trtllm_build import load_engine
from trtllm_build.bundle import Bundle
from trtllm_build.pipeline import build
from trtllm_build.plan import make_plan

SMS = {"dgx_spark": 121, "rtx5090": 120}


@pytest.fixture(scope="module")
def checkpoint(exported_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, with few questions and few steps: it has hardly been trained and would take all of them."""
    directory = Path(shutil.copytree(exported_checkpoint, tmp_path_factory.mktemp("demo") / "checkpoint"))
    generation = directory / "generation_config.json"
    generation.write_text(json.dumps(json.loads(generation.read_text()) | {"max_denoising_steps": 2}))
    for name in (HELD_OUT, CALIBRATION):
        lines = (directory / name).read_text(encoding="utf-8").splitlines()[:6]
        (directory / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return directory


def built(checkpoint: Path, out: Path, gpu: str, precision: str) -> tuple[dict, list[str]]:
    lines: list[str] = []
    given = [f"gpu={gpu}", f"precision={precision}", f"checkpoint={checkpoint}", f"out={out}", "largest_loss=1"]
    return build(make_plan(given), lines.append), lines


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp8", "nvfp4"])
@pytest.mark.parametrize("gpu", ["dgx_spark", "rtx5090"])
def test_the_demo_checkpoint_becomes_an_engine(checkpoint: Path, tmp_path: Path, gpu: str, precision: str) -> None:
    manifest, lines = built(checkpoint, tmp_path / "engine", gpu, precision)
    measured = manifest["measured"]
    assert manifest["verified"] == "compiled"
    assert manifest["hardware"] == {"kind": "cuda", "name": gpu.upper(), "sm": SMS[gpu]}
    assert measured["graph"]["against_torch"]["largest"] <= 1e-4
    assert measured["graph"]["tensors_compared"] >= 40  # 20 per layer, of two
    assert measured["plan"]["sm"] == SMS[gpu]
    assert measured["plan"]["bytes"] == manifest["files"]["plan"]["bytes"]
    # one copy of the weights serves both phases
    assert measured["plan"]["weights_bytes"] < 1.05 * measured["graph"]["bytes"]
    assert {"fp32", precision, "loss"} < set(measured["quality"])
    assert {"ids", "phase", "keys_0"} < set(manifest["io"]["inputs"])
    assert not (tmp_path / "engine" / "graph").exists()
    assert any("nothing ran on the device" in line for line in lines)
    message = rf"engine:hardware: 'built for an? {gpu.upper()} GPU \(SM {SMS[gpu]}\)'.*no CUDA GPU"
    with pytest.raises(FieldError, match=message):
        load_engine(tmp_path / "engine")
    assert Bundle.open(tmp_path / "engine", elsewhere=True).manifest == manifest


def test_scales_of_activations_need_conversations(checkpoint: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    (bare / CALIBRATION).unlink()
    with pytest.raises(FieldError, match=r"calibration: None .*here or as calibration.jsonl of the checkpoint"):
        make_plan(["gpu=dgx_spark", f"checkpoint={bare}"])
    assert make_plan(["gpu=dgx_spark", "precision=bf16", f"checkpoint={bare}"]).calibration is None
