"""Post every body of a folder to a real server and print what became of each: `python -m tests.cases.serving`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from tests.cases.serving.play import BODIES, Outcome, play
from tests.cases.serving.right import BASELINE, RIGHT
from tests.cases.table import finish
from tests.support import quick_engine, text_checkpoint
from triton_repo.launcher.server import Server

_LONGEST = 160  # characters of a message that the table shows


def main() -> None:
    """Exits 1 when anything is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.cases.serving", description=__doc__)
    about = "of bodies, one file of JSON each (default: those of the project, each with what is right for it)"
    parser.add_argument("folder", nargs="?", type=Path, default=BODIES, help=about)
    parser.add_argument("--engine", type=Path, metavar="DIR", help="engine bundle (default: one of random weights)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    options = parser.parse_args()
    files = sorted(options.folder.glob("*.json"))
    if not files:
        parser.error(f"no *.json in {options.folder}")
    with tempfile.TemporaryDirectory() as root:
        engine = options.engine or quick_engine(text_checkpoint(Path(root) / "base"), Path(root) / "quick")
        with Server(engine, http_port=0, grpc_port=0, metrics_port=0, openai_port=0) as server:
            url = server.openai_url.removesuffix("/v1")
            baseline = play((BODIES / f"{BASELINE}.json").read_bytes(), url, RIGHT[BASELINE]).text
            outcomes = {f.stem: play(f.read_bytes(), url, RIGHT.get(f.stem), baseline) for f in files}
    finish(_table(outcomes), outcomes, options.json, 220)


def _table(outcomes: dict[str, Outcome]) -> Table:
    table = Table("case", "status", "answer", "without effect", "verdict")
    for name, outcome in outcomes.items():
        verdict = "; ".join(outcome.wrong) or ("right" if name in RIGHT else "well answered")
        short = outcome.message if len(outcome.message) <= _LONGEST else outcome.message[:_LONGEST] + "..."
        row = (name, str(outcome.status), short, ", ".join(outcome.ignored), verdict)
        table.add_row(*(escape(text) for text in row))
    return table


if __name__ == "__main__":
    main()
