"""When training checkpoints are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from nemo_diffgemma.training.checkpoint_files import checkpoint_path, checkpoint_steps, remove_checkpoint
from nemo_diffgemma.training.progress import Report
from nemo_diffgemma.training.signals import Stopped, StopSignals


class TrainingCheckpoints(Callback):  # type: ignore[misc]
    """Writes a training checkpoint every so many steps, after the last step, and when the run is told to stop.

    The newest is kept, and the one before, for when the newest gets damaged. Each takes its name by a rename, so a
    killed run finds a whole one.

    Args:
        run: the run's folder.
        every: steps between two checkpoints.
        last: the run's last step.
        signals: what tells the run to stop.
        report: written into the run's folder with each checkpoint.

    Raises:
        Stopped: after the step during which a signal came to any process of the run, in all of them.
    """

    def __init__(self, run: Path, every: int, last: int, signals: StopSignals, report: Report):
        self._run, self._every, self._last = run, every, last
        self._signals, self._report = signals, report

    def on_train_start(self, _trainer: Any, _module: Any) -> None:
        """From here on a signal waits for the step's end. Lightning's own handlers end a run with status 0."""
        self._signals.install()
        self._signals.deferred = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_batch: Any) -> None:
        """Save where it is time to."""
        step = trainer.global_step
        stop: int = pl_module.stop_signal
        if stop or step % self._every == 0 or step == self._last:
            self._save(trainer, step)
        if stop:
            raise Stopped(stop)

    def on_train_end(self, _trainer: Any, _module: Any) -> None:
        """What follows may be ended at once: the last step is saved."""
        self._signals.deferred = False

    def _save(self, trainer: Any, step: int) -> None:
        path = checkpoint_path(self._run, step)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            self._report.write(self._run)
            for older in [s for s in checkpoint_steps(self._run) if s < step][:-1]:
                remove_checkpoint(checkpoint_path(self._run, older))
