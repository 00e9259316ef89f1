"""Dividing a run among processes, stopping it or killing it changes nothing that it computes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.training.checkpoint_files import newest_step

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

TINY = [
    "model.hidden_size=32",
    "model.intermediate_size=48",
    "model.head_dim=16",
    "model.global_head_dim=16",
    "model.moe_intermediate_size=16",
    "data.generate.examples=1500",
    "data.generate.held_out=15",  # which two processes do not divide evenly
    "data.batch=8",
    "parallel.accelerator=cpu",
    "optim.steps=20",
    "optim.schedule_steps=20",
    "validate_every=10",
    "checkpoint_every=5",
    "log_every=1",
    "threads=1",
]
PARALLEL = {
    "single": ["parallel=single"],
    "ddp": ["parallel=ddp"],
    "fsdp2": ["parallel=fsdp2", "parallel.devices=2"],
    "fsdp2_ep": ["parallel=fsdp2_ep", "parallel.devices=2", "parallel.expert_parallel=2"],
}
# Dies like a killed machine: in the middle of writing the second training checkpoint.
DYING = """
import os, signal, sys, torch
save, calls = torch.save, 0
def dying_save(value, file, *args, **kwargs):
    global calls
    ours = isinstance(value, dict) and "pytorch-lightning_version" in value
    calls += ours
    if ours and calls == 2:
        if hasattr(file, "write"):
            file.write(b"half a checkpoint")
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return save(value, file, *args, **kwargs)
torch.save = dying_save
from nemo_diffgemma.training.cli import main
main()
"""


def command(run: Path, *overrides: str, script: Path | None = None) -> subprocess.CompletedProcess[str]:
    start = [str(script)] if script else ["-m", "nemo_diffgemma.training"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(
        [sys.executable, *start, *TINY, f"run={run}", *overrides],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )


def train(run: Path, *overrides: str) -> dict[str, Any]:
    done = command(run, *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads((run / "training.json").read_text())
    return report


def losses(report: dict[str, Any]) -> torch.Tensor:
    return torch.tensor([[s["loss"], s["diffusion"], s["autoregressive"]] for s in report["losses"]])


def assert_same_weights(one: Path, other: Path, limit: float) -> None:
    first, second = Checkpoint(one / "checkpoint"), Checkpoint(other / "checkpoint")
    for name, tensor in first.tensors(first.text_shapes):
        assert (tensor - second.tensor(name)).abs().max() <= limit, name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps in one process."""
    run = tmp_path_factory.mktemp("single") / "run"
    train(run, *PARALLEL["single"])
    return run


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])  # fsdp2_ep: below
def test_two_processes_compute_what_one_does(parallel: str, uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "a=b, c#[1] it's"  # which every process reads from a command line
    report = train(run, *PARALLEL[parallel])
    wanted = json.loads((uninterrupted / "training.json").read_text())
    assert (losses(report) - losses(wanted)).abs().max() <= 1e-4
    assert report["validation"][-1]["loss"] == pytest.approx(wanted["validation"][-1]["loss"], abs=1e-4)
    assert_same_weights(run, uninterrupted, 1e-3)


@pytest.fixture(scope="module")
def half_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that stopped after half of its steps."""
    run = tmp_path_factory.mktemp("half") / "run"
    train(run, *PARALLEL["fsdp2_ep"], "optim.steps=10")
    return run


@pytest.mark.parametrize(
    "processes",
    [
        PARALLEL["fsdp2_ep"],
        ["parallel=fsdp2_ep", "parallel.devices=4", "parallel.expert_parallel=4"],
    ],
    ids=["as many", "others"],
)
def test_resumed_equals_uninterrupted(
    processes: list[str], half_done: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(half_done, run)
    report = train(run, *processes, "resume=true")
    wanted = json.loads((uninterrupted / "training.json").read_text())
    assert [s["step"] for s in report["losses"]] == list(range(1, 21))
    assert (losses(report) - losses(wanted)).abs().max() <= 1e-4
    assert_same_weights(run, uninterrupted, 1e-3)


def test_killed_while_writing_a_checkpoint(uninterrupted: Path, tmp_path: Path) -> None:
    """Step 5 was written, step 10 only in half: the run goes on from step 5 and ends where it would have."""
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    run = tmp_path / "run"
    assert command(run, script=script).returncode != 0
    assert newest_step(run) == 5
    report = train(run, "resume=true")
    wanted = json.loads((uninterrupted / "training.json").read_text())
    assert (losses(report) - losses(wanted)).abs().max() <= 0.0
