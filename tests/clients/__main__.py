"""Run every client's examples of docs/clients.md against a real server of the demo model: `make test-clients`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from nemo_diffgemma.errors import FieldError, require
from tests.cases.table import finish
from tests.clients.page import CLIENTS, ENVIRONMENTS, PAGE, folder
from tests.clients.play import Outcome, play
from triton_repo.demo.examples import PROJECT, blocks
from triton_repo.demo.training import ENGINE
from triton_repo.launcher.server import Server


def main() -> None:
    """Exits 1 when a client does not do what the page says, 2 when something is missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"which (default: all): {', '.join(CLIENTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    options = parser.parse_args()
    try:
        chosen = _chosen(options.clients)
        for environment in ENVIRONMENTS:
            there = folder(environment).is_dir()
            require(there, field="environment", value=environment, allowed="one that is", fix="make test-clients")
        engine = PROJECT / ENGINE
        require(engine.is_dir(), field="engine", value=ENGINE, allowed="what make demo leaves", fix="make demo")
    except FieldError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    outcomes: dict[str, Outcome] = {}
    with Server(engine, http_port=0, grpc_port=0, metrics_port=0, openai_port=0) as server:
        address = server.openai_url.removeprefix("http://").removesuffix("/v1")
        for title in chosen:
            print(f"[clients] {title}", flush=True)
            section = [block for block in blocks() if (block.document, block.section) == (PAGE, title)]
            with tempfile.TemporaryDirectory() as scratch:
                outcomes[title] = play(CLIENTS[title], section, address, Path(scratch))
    finish(_table(outcomes), outcomes, options.json, 160)


def _chosen(titles: list[str]) -> list[str]:
    for title in titles:
        allowed = ", ".join(CLIENTS)
        require(title in CLIENTS, field="CLIENT", value=title, allowed=allowed, fix="write it as the page does")
    return titles or list(CLIENTS)


def _table(outcomes: dict[str, Outcome]) -> Table:
    table = Table("client", "version", "what was tried", "scores", "verdict")
    for title, outcome in outcomes.items():
        scores = ", ".join(f"{score:g}" for score in outcome.scores)
        row = (title, outcome.version, outcome.tried, scores, "; ".join(outcome.wrong) or "works")
        table.add_row(*(escape(text) for text in row))
    return table


if __name__ == "__main__":
    main()
