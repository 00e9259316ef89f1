"""Which process of a run this is, before Lightning says so."""

from __future__ import annotations

import ctypes
import os
import signal

_PARENT = "DIFFGEMMA_TRAIN_PARENT"
_PR_SET_PDEATHSIG = 1
_PARENT_GONE = "the process that started this one is gone"


def mark_children() -> None:
    """Call before Lightning starts the other processes of ``parallel.devices``: they know their parent by it."""
    if not launched_by_run():
        os.environ[_PARENT] = str(os.getpid())


def launched_by_run() -> bool:
    """Whether the run's first process started this one; what stops both is then said once, by the first."""
    return os.environ.get(_PARENT) == str(os.getppid())


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is gone, however that went."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if not launched_by_run():
        raise SystemExit(_PARENT_GONE)


def processes_started() -> int | None:
    """Number of processes that torchrun or Slurm's srun started for this run; None when it is to start its own."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    # what Lightning goes by: a shell inside an allocation has these variables too, and starts nothing
    if "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return int(os.environ["SLURM_NTASKS"])
    return None


def is_first() -> bool:
    """Whether this is process 0 of the run: the one that writes and speaks."""
    if launched_by_run():
        return False
    if processes_started() is not None:
        return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0
    return os.environ.get("NODE_RANK", "0") == "0"
