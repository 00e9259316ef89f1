"""What the demo shows while it runs: numbered stages with their seconds, and progress within them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nemo_diffgemma.entry import Stopped
from nemo_diffgemma.processes import end_with_parent

_EVERY_S = 5.0  # between lines of progress where there is no terminal


class Stages:
    """Stages in turn, and the seconds each took.

    Args:
        console: where they are announced.
        count: how many there will be.
        seconds: what was before the first.
    """

    def __init__(self, console: Console, count: int, seconds: Mapping[str, float]):
        self.console = console
        self.seconds = dict(seconds)
        self._begun, self._count = 0, count

    @contextmanager
    def stage(self, name: str, about: str) -> Iterator[None]:
        """One stage: announced as ``about``, timed under ``name``."""
        self._begun += 1
        self.console.print(f"[bold cyan]\\[{self._begun}/{self._count}][/bold cyan] {about}", soft_wrap=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[], None]]:
        """Gives the function that counts one of ``total`` as done; it may be called from several threads."""
        if not self.console.is_terminal:
            yield _Lines(self.console, label, total).advance
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(label, total=total)
            yield lambda: bar.advance(task)


class _Lines:
    """Progress as a line now and then."""

    def __init__(self, console: Console, label: str, total: int):
        self._console, self._label, self._total = console, label, total
        self._done, self._start = 0, time.monotonic()
        self._said = self._start

    def advance(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._said >= _EVERY_S or self._done == self._total:
            self._said = now
            self._console.print(f"{self._label} {self._done}/{self._total}  {now - self._start:.0f} s")


def stop_on_signals() -> None:
    """Make SIGINT, SIGTERM and SIGHUP raise :class:`Stopped` in the main thread."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def run(module: str, *arguments: str) -> None:
    """A stage as its own command, exactly as a user would type it.

    A signal that stops the demo is passed on, and the command is waited for: training writes a checkpoint first. A
    second one ends it at once.

    Raises:
        CalledProcessError: when it fails.
    """
    command = [sys.executable, "-m", module, *arguments]
    # a process group of its own: Ctrl-C in a terminal reaches the demo alone, which passes it on once
    with subprocess.Popen(command, process_group=0, preexec_fn=partial(end_with_parent, signal.SIGTERM)) as process:
        try:
            status = process.wait()
        except Stopped as stopped:
            process.send_signal(stopped.number)
            try:
                process.wait()
            except BaseException:
                process.kill()
                raise
            raise
    if status:
        raise subprocess.CalledProcessError(status, command)
