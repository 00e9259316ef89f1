"""What a run shows and leaves behind: progress on the terminal, training.json beside the model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nemo_diffgemma.files import write_json
from nemo_diffgemma.training.run_folder import CURVE


class Report(Callback):  # type: ignore[misc]
    """Losses by step, kept in every training checkpoint, so that a resumed run reports the whole curve.

    Args:
        steps: last step of the run.
        every: how often a line is printed where there is no terminal, in steps.
    """

    def __init__(self, steps: int, every: int):
        self._steps, self._every = steps, every
        self._console = Console()
        self._bar: Progress | None = None
        self._task: Any = None
        self._before, self._started = 0.0, 0.0
        self._parameters = 0
        self.losses: list[dict[str, float]] = []
        self.validation: list[dict[str, float]] = []

    # -- terminal -----------------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock and, on a terminal, the bar."""
        self._started = time.monotonic()
        self._parameters = sum(p.numel() for p in pl_module.net.parameters())
        if trainer.is_global_zero and self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("training", total=self._steps, completed=trainer.global_step)
            self._bar.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_batch: Any) -> None:
        """Note this step's losses and show them."""
        self.losses.append({"step": trainer.global_step, **pl_module.parts})
        if self._bar is not None:
            text = f"loss {pl_module.parts['loss']:.3f}"
            self._bar.update(self._task, completed=trainer.global_step, description=text)
        elif trainer.is_global_zero and trainer.global_step % self._every == 0:
            self._say(trainer.global_step, pl_module.parts)

    def on_validation_end(self, trainer: Any, _module: Any) -> None:
        """Note and print the validation loss."""
        loss = float(trainer.callback_metrics["val_loss"])
        self.validation.append({"step": trainer.global_step, "loss": loss})
        if trainer.is_global_zero:
            console = self._bar.console if self._bar is not None else self._console
            console.print(f"step {trainer.global_step}/{self._steps}  validation loss {loss:.4f}", highlight=False)

    def on_train_end(self, _trainer: Any, _module: Any) -> None:
        """Stop the bar."""
        self._stop()

    def on_exception(self, _trainer: Any, _module: Any, _exception: BaseException) -> None:
        """Stop the bar."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, step: int, parts: dict[str, float]) -> None:
        losses = f"loss {parts['loss']:.4f} (diffusion {parts['diffusion']:.4f}, encoder {parts['autoregressive']:.4f})"
        self._console.print(f"step {step}/{self._steps}  {losses}  {self.seconds:.0f} s", highlight=False)

    # -- what is kept -------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a resumption included."""
        return self._before + (time.monotonic() - self._started if self._started else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Lightning's hook: the curve so far."""
        return {"losses": self.losses, "validation": self.validation, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's hook: go on from a restored curve."""
        self.losses, self.validation = list(state_dict["losses"]), list(state_dict["validation"])
        self._before = state_dict["seconds"]

    def write(self, run: Path) -> dict[str, Any]:
        """Write the curve so far into the run's folder.

        Returns:
            What was written: number of parameters, steps done, losses by step, seconds.
        """
        steps = int(self.losses[-1]["step"]) if self.losses else 0
        values = {"parameters": self._parameters, "steps": steps, **self.state_dict()}
        write_json(run / CURVE, values)
        return values
