"""Options of OpenAI's endpoint that its process and the launcher of the whole service both take."""

from __future__ import annotations

import argparse
import re

from nemo_diffgemma.errors import require

# Longer than the minute after which many proxies drop an idle connection: who closes first must not be this end, which
# a request may be under way to.
_KEEP_ALIVE_S = 75
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#\s,@]+")


def add(parser: argparse.ArgumentParser) -> None:
    """Add ``--cors-origin`` and ``--keep-alive``."""
    about = "let pages of this origin ask OpenAI's API, as https://chat.example; repeatable; * for all (default: none)"
    parser.add_argument("--cors-origin", action="append", default=[], metavar="ORIGIN", help=about)
    about = "of silence, after which OpenAI's API closes an idle connection (default: %(default)s)"
    parser.add_argument("--keep-alive", type=int, default=_KEEP_ALIVE_S, metavar="SECONDS", help=about)


def check(given: argparse.Namespace) -> None:
    """Raise :class:`FieldError` for what :func:`add` has added and was given wrongly."""
    for origin in given.cors_origin:
        require(
            _ORIGIN.fullmatch(origin) is not None,
            field="--cors-origin",
            value=origin,
            allowed="scheme://host or scheme://host:port, or * for all",
            fix="pass it as the browser sends it: --cors-origin=https://chat.example",
        )
    require(
        1 <= given.keep_alive < 86400,
        field="--keep-alive",
        value=given.keep_alive,
        allowed="seconds from 1 to a day",
        fix="leave it out",
    )


def passed_on(given: argparse.Namespace) -> list[str]:
    """The same options for another command line."""
    return [f"--keep-alive={given.keep_alive}", *(f"--cors-origin={origin}" for origin in given.cors_origin)]
