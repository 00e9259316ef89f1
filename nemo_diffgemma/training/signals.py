"""Being told to stop: a signal ends a run after the step it is in, once that step is in a training checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nemo_diffgemma.entry import SIGNALS as SIGNALS
from nemo_diffgemma.entry import Stopped as Stopped
from nemo_diffgemma.entry import stop


class StopSignals:
    """Handlers of :data:`SIGNALS` for one run.

    While steps are computed a signal is only noted, and the step ends first; at any other time, and when the same
    signal comes a second time, it raises :class:`Stopped` where the process is.
    """

    def __init__(self) -> None:
        self.received = 0  # number of the signal that was noted, 0 for none
        self.deferred = False  # whether a signal is only noted

    def install(self) -> None:
        """Handle the signals here, whatever handled them before; ignored ones (``nohup``) stay ignored."""
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP:
                signal.signal(number, self._handle)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Only note a signal in this block, and raise at its end: imports may catch what is raised in them."""
        self.deferred = True
        yield
        self.deferred = False
        if self.received:
            raise Stopped(self.received)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self.deferred or self.received == number:
            stop(number)
        self.received = number


def requeue() -> str:
    """Ask Slurm to run this job again; returns what came of it, in words. Empty outside of a Slurm job."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return ""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Slurm job {job} was not requeued: {error}"
    if done.returncode:
        return f"Slurm job {job} was not requeued: {done.stderr.strip() or done.stdout.strip()}"
    return f"Slurm job {job} is requeued"
