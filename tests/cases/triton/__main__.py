"""Attack a real server and print what became of it: `python -m tests.cases.triton`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from tests.cases.table import finish
from tests.cases.triton.attacks import ATTACKS
from tests.cases.triton.play import play
from tests.cases.triton.target import Target
from tests.support import quick_engine, text_checkpoint
from triton_repo.launcher.server import Server


def main() -> None:
    """Exits 1 when anything is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.cases.triton", description=__doc__)
    parser.add_argument("--engine", type=Path, metavar="DIR", help="engine bundle (default: one of random weights)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        engine = options.engine or quick_engine(text_checkpoint(Path(root) / "base"), Path(root) / "quick")
        with Server(engine, http_port=0, grpc_port=0, metrics_port=0) as server:
            target = Target(server)
            honest, before = target.honest(), target.memory()
            outcomes = {name: play(attack, target, server, honest) for name, attack in ATTACKS.items()}
            after = target.memory()
            target.close()
    table = Table("attack", "the client is told", "verdict")
    for name, outcome in outcomes.items():
        short = outcome.told[:100].encode("unicode_escape").decode()
        table.add_row(*(escape(text) for text in (name, short, "; ".join(outcome.wrong) or "right")))
    for name, size in before.items():
        print(f"memory of the {name}'s process: {size} KiB before, {after[name]} KiB after")
    finish(table, outcomes, options.json, 200)


if __name__ == "__main__":
    main()
