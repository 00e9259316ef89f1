"""Play every case and print what became of each: `python -m tests.cases [PATTERN]`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.cases.case import Case, Outcome, play
from tests.cases.data import CASES as DATA
from tests.cases.engine import CASES as ENGINE
from tests.cases.table import finish
from tests.cases.training import CASES as TRAINING
from tests.support import text_checkpoint

CASES: tuple[Case, ...] = (*TRAINING, *DATA, *ENGINE)


def main() -> None:
    """Exits 1 when anything is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.cases", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="", help="part of a case's name (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    options = parser.parse_args()
    chosen = [case for case in CASES if options.pattern in case.name]
    console = Console(stderr=True, highlight=False)
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as root:
        base = text_checkpoint(Path(root) / "base")
        for number, case in enumerate(chosen, 1):
            console.print(f"[{number}/{len(chosen)}] {case.name}", markup=False)
            folder = Path(root) / f"case{number}"
            folder.mkdir()
            outcomes[case.name] = play(case, folder, base)
    finish(_table(outcomes), outcomes, options.json, 200)


def _table(outcomes: dict[str, Outcome]) -> Table:
    table = Table("case", "status", "message", "left on disk beside the user's files", "verdict")
    for name, outcome in outcomes.items():
        verdict = "; ".join(outcome.wrong) or "right"
        row = (name, str(outcome.status), outcome.message, ", ".join(outcome.left) or "nothing", verdict)
        table.add_row(*(escape(text) for text in row))
    return table


if __name__ == "__main__":
    main()
