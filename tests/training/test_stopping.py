"""A run that is told to stop, or killed, says so by its status and goes on where it was."""

from __future__ import annotations

import random
import signal
import subprocess
from pathlib import Path

import pytest

from nemo_diffgemma.training.checkpoint_files import checkpoint_steps
from tests.training.runs import curve, finish, start, train, wait_for_step

pytestmark = pytest.mark.slow

STEPS = 24
SETTINGS = (f"optim.steps={STEPS}", "checkpoint_every=4", "validate_every=12")
SCONTROL = '#!/bin/sh\necho "$@" > "$(dirname "$0")/asked"\n'


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(*SETTINGS, f"run={run}")
    return run


def test_signals_and_kills_lose_nothing_that_a_checkpoint_holds(undisturbed: Path, tmp_path: Path) -> None:
    """TERM, INT and KILL at random moments, the same command each time; the last one is left alone."""
    notes = tmp_path / "notes.md"
    notes.write_text("mine")
    run, draw, at = tmp_path / "run", random.Random(8), 0
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        process = start(*SETTINGS, f"run={run}", "resume=auto", cwd=tmp_path)
        wait_for_step(process, at + draw.randint(1, 5))
        process.send_signal(number)
        done = finish(process)
        kept = checkpoint_steps(run)
        if number == signal.SIGKILL:
            assert done.returncode == -signal.SIGKILL
        else:
            assert done.returncode == 128 + number
            where = f"the training checkpoint of step {kept[-1]} is in {run}"
            assert done.stderr == f"stopped by {number.name}: {where}; the same command with resume=auto goes on\n"
            assert at < kept[-1]
        at = max(kept, default=0)
    done = train(*SETTINGS, f"run={run}", "resume=auto", cwd=tmp_path)
    assert done.stdout.startswith(f"resume   step {at} of {STEPS}, from {run}/checkpoints/step={at}.ckpt\n")
    assert curve(run)["losses"] == curve(undisturbed)["losses"]
    assert curve(run)["validation"] == curve(undisturbed)["validation"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.md", "run"]
    assert checkpoint_steps(run) == [STEPS - 4, STEPS]
    assert len(list((run / "checkpoints").iterdir())) == 4  # each with its list


def test_slurm_is_asked_to_run_the_job_again(tmp_path: Path) -> None:
    """SIGUSR1 is what `sbatch --signal=USR1@120` sends; scontrol here is a script that notes how it was called."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(SCONTROL)
    scontrol.chmod(0o755)
    path = f"{scontrol.parent}:/usr/bin:/bin"
    process = start(f"run={tmp_path / 'run'}", environment={"SLURM_JOB_ID": "4711", "PATH": path})
    wait_for_step(process, 1)
    process.send_signal(signal.SIGUSR1)
    done = finish(process)
    assert done.returncode == 128 + signal.SIGUSR1
    assert done.stderr.endswith("; Slurm job 4711 is requeued\n")
    assert (scontrol.parent / "asked").read_text() == "requeue 4711\n"


@pytest.mark.distributed
def test_two_processes_stop_together_and_leave_none_behind(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    two = (*SETTINGS, f"run={run}", "resume=auto", "parallel=fsdp2", "parallel.devices=2")
    process = start(*two)
    wait_for_step(process, 5)
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.startswith("stopped by SIGTERM: the training checkpoint of step ")
    assert done.stderr.count("\n") == 1
    left = subprocess.run(["pgrep", "-f", str(run)], capture_output=True, text=True, check=False).stdout
    assert left == ""
    train(*two)
    found, wanted = curve(run)["losses"], curve(undisturbed)["losses"]
    assert [s["step"] for s in found] == list(range(1, STEPS + 1))
    assert found[-1]["loss"] == pytest.approx(wanted[-1]["loss"], abs=1e-4)
