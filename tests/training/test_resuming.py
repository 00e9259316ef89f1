"""A resumed run takes the settings of its own command; numbers that are not finite stop it before they spread."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.runs import curve, finish, start, train

pytestmark = pytest.mark.slow
PLAIN = ["optim.optimizer=adamw", "optim.schedule=cosine"]


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six steps, model and all."""
    run = tmp_path_factory.mktemp("six") / "run"
    train(
        f"run={run}", *PLAIN, "optim.steps=6", "optim.schedule_steps=12", "optim.warmup_steps=0", "checkpoint_every=3"
    )
    return run


def optimizer_groups(run: Path, step: int) -> list[dict[str, Any]]:
    state = torch.load(run / "checkpoints" / f"step={step}.ckpt", weights_only=False)
    return list(state["optimizer_states"][0]["param_groups"])


def test_rates_of_the_new_command_count(six_steps: Path, tmp_path: Path) -> None:
    run = shutil.copytree(six_steps, tmp_path / "run")
    changed = ["optim.lr=1e-3", "optim.min_lr=1e-4", "optim.betas=[0.8,0.9]", "optim.weight_decay=0.5"]
    fixed = [*PLAIN, "optim.steps=9", "optim.schedule_steps=12", "optim.warmup_steps=0", "resume=true"]
    train(f"run={run}", *fixed, *changed)
    rates = [entry["lr"] for entry in curve(run)["losses"]]
    assert rates[:6] == [entry["lr"] for entry in curve(six_steps)["losses"]]
    # half of the cosine is left: from the mean of both rates down
    assert rates[6] == pytest.approx((1e-3 + 1e-4) / 2)
    assert rates[6] > rates[7] > rates[8] > 1e-4
    groups = optimizer_groups(run, 9)
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert {tuple(group["betas"]) for group in groups} == {(0.8, 0.9)}
    assert {group["initial_lr"] for group in groups} == {1e-3}


def test_numbers_that_are_not_finite_stop_the_run(six_steps: Path, tmp_path: Path) -> None:
    """Step and place are named; checkpoint, curve and model stay as they were."""
    run = shutil.copytree(six_steps, tmp_path / "run")
    model = {p.name: p.read_bytes() for p in (run / "checkpoint").iterdir()}
    settings = [
        *PLAIN,
        "optim.steps=20",
        "optim.schedule_steps=12",
        "optim.warmup_steps=0",
        "resume=auto",
        "optim.lr=1e30",
    ]
    done = finish(start(f"run={run}", *settings))
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(("error: the loss is nan at step ", "error: the loss is inf", "error: the norm of"))
    assert "first in model." in line
    assert f"the training checkpoint of step 6 is in {run}; fix: " in line
    assert {p.name: p.read_bytes() for p in (run / "checkpoint").iterdir()} == model
    assert curve(run) == curve(six_steps)
