"""A typed, streaming client of the served model; it installs without the server.

:class:`Client` is asynchronous, :class:`BlockingClient` is for threads.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triton_repo.client.blocking import BlockingClient
    from triton_repo.client.client import (
        Cancelled,
        Client,
        GenerationError,
        Refused,
        Response,
        Retry,
        ServerMetadata,
        TimedOut,
        Tls,
        Unavailable,
        Unreachable,
    )

__all__ = [
    "BlockingClient",
    "Cancelled",
    "Client",
    "GenerationError",
    "Refused",
    "Response",
    "Retry",
    "ServerMetadata",
    "TimedOut",
    "Tls",
    "Unavailable",
    "Unreachable",
]


def __getattr__(name: str) -> Any:
    # Late: the options of `diffgemma` lie in this package too, and gRPC takes longer to import than --help may.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'blocking' if name == 'BlockingClient' else 'client'}"), name)
