"""The end of a command that plays cases: the table, its JSON, how many are right, the exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def finish(table: Table, outcomes: Mapping[str, Any], file: Path | None, width: int) -> None:
    """Print the table and a count; exits 1 when anything is wrong.

    Args:
        table: to print.
        outcomes: by case, dataclasses that list under ``wrong`` what is not as it must be.
        file: gets the outcomes as JSON; None for none.
        width: characters per line.
    """
    Console(width=width).print(table)
    if file:
        file.write_text(json.dumps({name: asdict(outcome) for name, outcome in outcomes.items()}, indent=2) + "\n")
    wrong = sum(bool(outcome.wrong) for outcome in outcomes.values())
    print(f"{len(outcomes)} cases, {len(outcomes) - wrong} right, {wrong} wrong")
    sys.exit(1 if wrong else 0)
