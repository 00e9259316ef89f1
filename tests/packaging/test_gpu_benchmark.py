"""The GPU benchmark has no GPU here: every line of it runs on a tiny model on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_rehearsal_measures_everything_and_says_what_it_is(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "build/bench/gpu_rehearsal.json").read_text())
    assert found["device"] == "CPU: a rehearsal, its numbers mean nothing"
    assert {"copy_gb_per_second", "load_seconds", "peak_bytes", "times_transformers"} < set(found)
    assert [row["what"] for row in found["rows"]][:2] == ["batch 1, 2 forced steps", "batch 2, 2 forced steps"]
    steps = json.loads((tmp_path / "build/bench/gpu_rehearsal_steps.json").read_text())["rows"]
    assert all(0 < row["share_of_floor"] < 1 and row["commit_ms"] > 0 for row in steps)
    assert (tmp_path / "build/bench/gpu_rehearsal.png").stat().st_size > 10_000


def test_without_a_gpu_an_engine_for_one_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--engine DIR is needed (`make engine GPU=h100 WEIGHTS=random` writes one)" in done.stderr


def environment() -> dict[str, str]:

    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
