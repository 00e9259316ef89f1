"""How a run ends: its exit status, and one line that says what is kept and how to go on."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nemo_diffgemma.entry import leave
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.machine import named, refusal
from nemo_diffgemma.training.checkpoint_files import newest_step
from nemo_diffgemma.training.launcher import is_first, launched_by_run
from nemo_diffgemma.training.signals import Stopped, requeue

_FIRST_S = 30  # in which the first process has said what is wrong


class NotFinite(Exception):
    """A loss or gradient is NaN or infinite; the weights are still those of the step before.

    Args:
        what: is not finite.
        step: the update it would have gone into, from 1.
        where: layer or weight it was first found in.
    """

    def __init__(self, what: str, step: int, where: str):
        super().__init__(f"{what} at step {step}, first in {where}")


class Ending:
    """Turns what ends a command into its exit status and one line on standard error."""

    def __init__(self) -> None:
        self.run: Path | None = None  # the run's folder, as soon as it is known

    def status_of(self, task: Callable[[], None]) -> int:
        """Run ``task`` and say how it ended, unless it ended well.

        Returns:
            Exit status: 0; 2 after a user's mistake; 1 when the run cannot go on; 128 plus a signal's number.
        """
        try:
            try:
                task()
            finally:
                leave()  # what is said from here on is not interrupted
        except FieldError as error:
            return _end(f"error: {error}", 2)
        except NotFinite as error:
            fix = "look at the data, or pass a lower optim.lr with resume=auto; output is as it was"
            return _end(f"error: {error}; {self._kept()}; fix: {fix}", 1)
        except Stopped as stopped:
            line = f"stopped by {stopped}: {self._kept()}; the same command with resume=auto goes on"
            if stopped.number == signal.SIGUSR1 and is_first():
                line += f"; {said}" if (said := requeue()) else ""
            return _end(line, 128 + stopped.number)
        except BaseException as error:
            found = refusal(error)
            if found is None:
                raise
            fix = "mend that, then pass resume=auto"
            return _end(f"error: {named(found)}; {self._kept()}; fix: {fix}", 1)
        return 0

    def _kept(self) -> str:
        step = None if self.run is None else newest_step(self.run)
        if step is None:
            return "there is no training checkpoint yet"
        return f"the training checkpoint of step {step} is in {self.run}"


def _end(line: str, status: int) -> int:
    if launched_by_run():
        return 0  # the first process says it, and Lightning kills that one when this one ends with an error
    if not is_first():
        if status > 128:
            return status
        # The launcher ends all processes as soon as one has: the first has most likely the same to say.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_FIRST_S)
    print(line, file=sys.stderr, flush=True)
    return status
