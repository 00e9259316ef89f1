"""What takes more than two seconds shows how far it is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_PATIENCE_S, _LINES_S = 2.0, 15.0


@contextmanager
def waiting(title: str, total: int, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show the progress of what the block does on standard error.

    Args:
        title: what is done, in a few words.
        total: how much there is to do.
        shown: False shows nothing: another process does.

    Yields:
        What to call with how much is done.
    """
    console = Console(stderr=True, highlight=False)
    started, said = time.monotonic(), 0.0
    bar: Progress | None = None

    def tick(done: int) -> None:
        nonlocal said, bar
        now = time.monotonic()
        if not shown or now - started < _PATIENCE_S:
            return
        if not console.is_terminal:
            if said == 0.0 or now - said >= _LINES_S:
                said = now
                print(f"{title}: {100 * done // max(1, total)} %", file=sys.stderr, flush=True)
            return
        if bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            bar = Progress(*columns, console=console, transient=True)
            bar.add_task(title, total=total)
            bar.start()
        bar.update(bar.task_ids[0], completed=done)

    try:
        yield tick
    finally:
        if bar is not None:
            bar.stop()
