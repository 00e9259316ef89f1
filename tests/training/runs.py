"""Training runs of seconds, as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODEL = (
    "model.hidden_size=32",
    "model.intermediate_size=48",
    "model.head_dim=16",
    "model.global_head_dim=16",
    "model.moe_intermediate_size=16",
)
TINY = (
    *MODEL,
    "data.generate.examples=1500",
    "data.generate.held_out=16",
    "data.batch=8",
    "parallel.accelerator=cpu",
    "validate_every=100",
    "log_every=1",
    "threads=1",
)
_ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "OMP_WAIT_POLICY": "PASSIVE"}


def start(*overrides: str, environment: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """A run of the tiny model under way; options are Popen's."""
    command = [sys.executable, "-m", "nemo_diffgemma.training", *TINY, *overrides]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | _ENVIRONMENT | (environment or {}), **(pipes | options))


def finish(run: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """What a run printed, once it has ended."""
    out, err = run.communicate(timeout=300)
    return subprocess.CompletedProcess(run.args, run.returncode, out, err)


def train(*overrides: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A run from start to end, which must end well."""
    done = finish(start(*overrides, **options))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def wait_for_step(run: subprocess.Popen[str], step: int) -> None:
    """Read what a run prints until it says that it is at ``step``."""
    assert run.stdout is not None
    end = time.monotonic() + 300
    while time.monotonic() < end:
        line = run.stdout.readline()
        assert line, f"ended before step {step}: {run.stderr.read() if run.stderr else ''}"
        if line.startswith(f"step {step}/"):
            return
    raise AssertionError(f"not at step {step} after five minutes")


def curve(folder: Path) -> dict[str, Any]:
    """training.json of a run or a model."""
    return dict(json.loads((folder / "training.json").read_text()))
