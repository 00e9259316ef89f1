"""Processes that torchrun or Slurm started: do they fit the run, and which of them speaks."""

from __future__ import annotations

import os

import pytest

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.training import ending
from nemo_diffgemma.training.config import load_config
from nemo_diffgemma.training.launcher import check_launcher, is_first
from nemo_diffgemma.training.settings import Parallel

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
SRUN = {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher but the test's."""
    for name in os.environ:
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in TORCHRUN:
            monkeypatch.delenv(name)


def parallel(devices: int) -> Parallel:
    return load_config(["parallel=fsdp2", f"parallel.devices={devices}"] if devices > 1 else []).parallel


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, 1),
        ({}, 2),
        (TORCHRUN, 2),
        (SRUN, 2),
        (SRUN | {"SLURM_NTASKS": "1"}, 1),
        (SRUN | {"SLURM_JOB_NAME": "bash"}, 1),
        (SRUN | {"SLURM_JOB_NAME": "interactive"}, 2),
        (SRUN | TORCHRUN | {"SLURM_NTASKS": "1"}, 2),
    ],
)
def test_as_many_processes_as_the_run_has_are_right(
    environment: dict[str, str], devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_launcher(parallel(devices))


@pytest.mark.parametrize(
    ("environment", "devices", "said"),
    [
        (
            TORCHRUN,
            1,
            r"^parallel: '1 \(devices 1, nodes 1\)'.*2 processes that torchrun.*parallel=fsdp2",
        ),
        (
            TORCHRUN | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
            2,
            r"^parallel: .*1 processes .*start 2 of them",
        ),
        (TORCHRUN | {"WORLD_SIZE": "4"}, 2, r"parallel.devices=2 parallel.nodes=2"),
        (
            SRUN,
            1,
            r"^parallel: '1 .*2 processes that Slurm.*parallel.devices=2 parallel.nodes=1",
        ),
        (SRUN | {"SLURM_NTASKS": "1"}, 2, r"^SLURM_NTASKS: 1 .*allowed: 2, .*fix: srun --ntasks-per-node=N"),
        (
            SRUN | {"SLURM_JOB_NAME": "bash", "SLURM_STEP_NUM_TASKS": "2"},
            2,
            r"^SLURM_JOB_NAME: 'bash'.*--job-name=train",
        ),
    ],
)
def test_another_number_of_processes_is_refused_with_what_to_pass(
    environment: dict[str, str], devices: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FieldError, match=said):
        check_launcher(parallel(devices))


def test_slurm_without_srun_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(FieldError, match=r"^SLURM_NTASKS: 2 .*allowed: 1, .*unset SLURM_NTASKS"):
        check_launcher(parallel(1))


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        (TORCHRUN, True),
        (TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1"}, False),
        (TORCHRUN | {"RANK": "2"}, False),
        ({"DIFFGEMMA_TRAIN_PARENT": str(os.getppid())}, False),
        (SRUN | {"SLURM_PROCID": "1", "SLURM_LOCALID": "1"}, False),
        (SRUN | {"SLURM_PROCID": "1", "SLURM_JOB_NAME": "bash"}, True),
    ],
)
def test_one_process_speaks(environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first() is first


def test_others_leave_it_to_the_first_to_say_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(ending.time, "sleep", slept.append)

    def mistake() -> None:
        raise FieldError(field="seed", value=-1, allowed="0 or more", fix="pass seed=0")

    for rank, waits in (("0", 0), ("1", 1)):
        for name, value in (TORCHRUN | {"RANK": rank}).items():
            monkeypatch.setenv(name, value)
        assert ending.Ending().status_of(mistake) == 2
        assert len(slept) == waits
        assert capsys.readouterr().err == "error: seed: -1 cannot be used; allowed: 0 or more; fix: pass seed=0\n"
