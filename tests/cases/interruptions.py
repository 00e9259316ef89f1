"""Runs that are hit again and again lose nothing: `python -m tests.cases.interruptions [--hits N] [--json FILE]`.

A run of 60 steps under ``resume=auto`` is started, hit by a signal at a random moment (seeded; from its first second to
its last), and started again, until ten signals of a kind have landed; where it ends by itself first, a new one begins.
Then it is left alone. Its losses must be those of a run that was never disturbed, to the last bit.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.cases.table import finish
from tests.training.runs import start

STEPS = 60
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGKILL)
_SETTINGS = (f"optim.steps={STEPS}", "checkpoint_every=10", "data.generate.examples=600", "resume=auto")
# In less Python may not have come to the first line of ours.
_FIRST_S = 0.5


@dataclass
class Outcome:
    """What became of the runs that one kind of signal hit.

    Args:
        statuses: exit statuses of the runs that were hit, in order.
        moments: when each was hit, in seconds after its start.
        kept: step of the training checkpoint after each hit, 0 for none.
        finished: runs that ended by themselves, the last included.
        wrong: what is not as it must be; empty when all is.
    """

    statuses: list[int] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    finished: int = 0
    wrong: list[str] = field(default_factory=list)


def losses(run: Path) -> list[tuple[int, float]]:
    """Step and loss of every step that a run's model was trained with."""
    found = json.loads((run / "checkpoint" / "training.json").read_text())["losses"]
    return [(entry["step"], entry["loss"]) for entry in found]


def hit(number: signal.Signals, hits: int, folder: Path, whole_s: float, wanted: list[tuple[int, float]]) -> Outcome:
    """Hit runs in ``folder`` until ``hits`` signals have landed, then let the last one end.

    Args:
        number: of the signal.
        hits: how many.
        folder: an empty one.
        whole_s: seconds that an undisturbed run takes.
        wanted: its losses.
    """
    draw, outcome, run = random.Random(f"{number.name}"), Outcome(), folder / "run"
    notes = folder / "notes.md"
    notes.write_text("mine")
    status = -number if number == signal.SIGKILL else 128 + number
    over = False
    while not over:
        process = start(*_SETTINGS, f"run={run}")
        moment = draw.uniform(_FIRST_S, whole_s) if len(outcome.statuses) < hits else None
        try:
            _, err = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            _, err = process.communicate()
        if process.returncode == 0:
            outcome.finished += 1
            over = len(outcome.statuses) == hits
            if losses(run) != wanted:
                outcome.wrong.append(f"run {outcome.finished}: other losses")
            if not over:
                shutil.rmtree(run)
            continue
        if moment is None or process.returncode != status:
            outcome.wrong.append(f"status {process.returncode}, not {status}: {err[-200:]}")
            over = moment is None
        if len(err.splitlines()) != (0 if number == signal.SIGKILL else 1):
            outcome.wrong.append(f"{len(err.splitlines())} lines of error: {err[-200:]}")
        outcome.statuses.append(process.returncode)
        outcome.moments.append(round(moment or 0.0, 1))
        steps = [int(path.stem.removeprefix("step=")) for path in run.glob("checkpoints/step=*.ckpt")]
        outcome.kept.append(max(steps, default=0))
    if notes.read_text() != "mine" or sorted(p.name for p in folder.iterdir()) != ["notes.md", "run"]:
        outcome.wrong.append("what lies beside the run changed")
    left = sorted(p.name for p in folder.rglob("*") if p.name.endswith((".partial", ".old", ".lock")))
    if left:
        outcome.wrong.append(f"left behind: {', '.join(left)}")
    return outcome


def main() -> None:
    """Exits 1 when anything is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.cases.interruptions", description=__doc__)
    parser.add_argument("--hits", type=int, default=10, metavar="N", help="per signal (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    options = parser.parse_args()
    console = Console(stderr=True, highlight=False)
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as root:
        began = time.monotonic()
        whole = start(*_SETTINGS, f"run={root}/whole")
        _, err = whole.communicate()
        if whole.returncode:
            sys.exit(err)
        seconds = time.monotonic() - began
        console.print(f"an undisturbed run: {seconds:.1f} s")
        wanted = losses(Path(root) / "whole")
        for number in SIGNALS:
            folder = Path(root) / number.name
            folder.mkdir()
            outcomes[number.name] = hit(number, options.hits, folder, seconds, wanted)
            console.print(f"{number.name}: {outcomes[number.name].wrong or 'right'}", markup=False)
    table = Table("signal", "statuses", "at, s", "step kept", "runs that ended", "losses, files, statuses")
    for name, found in outcomes.items():
        cells = (sorted(set(found.statuses)), found.moments, found.kept, found.finished)
        table.add_row(name, *(str(cell) for cell in cells), "; ".join(found.wrong) or "right")
    finish(table, outcomes, options.json, 200)


if __name__ == "__main__":
    main()
