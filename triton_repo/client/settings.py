"""Where the server is, TLS, retries: what a connection is opened with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemo_diffgemma.errors import require

DEFAULT_URL = "127.0.0.1:8001"


@dataclass(frozen=True)
class Tls:
    """Files in PEM.

    Args:
        ca: certificates that the server's must be signed by.
        cert, key: this client's own, for a server that asks for one; both or neither.
        name: that the server's certificate is for, where it is not the host of the url.

    Raises:
        FieldError: for one of ``cert`` and ``key`` without the other.
    """

    ca: str | Path
    cert: str | Path | None = None
    key: str | Path | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        missing = "tls_key" if self.key is None else "tls_cert"
        both = (self.cert is None) == (self.key is None)
        require(
            both,
            field=missing,
            value=None,
            allowed="a file in PEM: tls_cert and tls_key go together",
            fix=f"pass {missing} too",
        )


@dataclass(frozen=True)
class Retry:
    """When a server that is not available is asked again; only before its first response.

    Args:
        attempts: tries in all; 1 never asks again.
        first_s: seconds before the second try; doubled before each further one, each shortened by up to a half at
            random, so that clients refused together do not come back together.
        most_s: most seconds between two tries.
        total_s: no try begins later than this after the first.

    Raises:
        FieldError: for fewer than one attempt.
    """

    attempts: int = 5
    first_s: float = 0.1
    most_s: float = 2.0
    total_s: float = 30.0

    def __post_init__(self) -> None:
        require(
            self.attempts >= 1,
            field="attempts",
            value=self.attempts,
            allowed="an integer >= 1",
            fix="pass attempts=1 to try once",
        )
