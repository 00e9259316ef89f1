"""Runs whose processes something else starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.test_training_distributed import TINY

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS = ["optim.steps=2", "optim.schedule_steps=2", "validate_every=2", "checkpoint_every=2"]


def torchrun(run: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command += ["-m", "nemo_diffgemma.training", *TINY, *STEPS, f"run={run}", *overrides]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_torchrun_starts_a_run_whose_files_one_process_writes(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    done = torchrun(run, "parallel=fsdp2", "parallel.devices=2")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((run / "training.json").read_text())
    assert (report["steps"], len(report["validation"])) == (2, 1)
    lines = (run / "data/train.jsonl").read_text().splitlines()
    assert len(lines) == 1500
    assert all(json.loads(line)["messages"] for line in lines)


def test_a_number_of_processes_that_is_not_the_runs_is_said_once(tmp_path: Path) -> None:
    done = torchrun(tmp_path / "run")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    (line,) = said
    assert "the 2 processes that torchrun started; fix: pass parallel=fsdp2 parallel.devices=2" in line
    assert not (tmp_path / "run").exists()
