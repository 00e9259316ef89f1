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
        statuses: asks for gRPC statuses instead of messages, by which tritonserver 2.51 ends now and then.
    """

    run: Callable[[Target], str]
    told: str
    statuses: bool = False
