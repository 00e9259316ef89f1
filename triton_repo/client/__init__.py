"""A typed, streaming client of the served model; it installs without the server.

:class:`Client` is asynchronous; :class:`triton_repo.client.blocking.BlockingClient` is for threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triton_repo.client.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    # the command's options lie in this package too, and gRPC takes longer to import than they do
    from triton_repo.client import client

    return getattr(client, name)
