"""An attack: what it does, and what it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.cases.triton.target import Target


@dataclass(frozen=True)
class Attack:
    """Something hostile.

    Args:
        run: does it; returns what the client is told.
        told: how that begins.
    """

    run: Callable[[Target], str]
    told: str
