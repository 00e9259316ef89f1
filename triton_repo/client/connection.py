"""What a client's connection is made of: channel options, TLS files, waiting between tries."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from nemo_diffgemma.errors import FieldError, require

DEFAULT_URL = "127.0.0.1:8001"
_OPTIONS = [
    # gRPC's own limit of 4 MB would cut a long prompt's messages.
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # gRPC would wait a second before it connects again, and fail every try of ours until then.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


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


class Tries:
    """The tries of one call."""

    def __init__(self, retry: Retry):
        self._retry = retry
        self._made = 0
        self._end = time.monotonic() + retry.total_s

    async def another(self) -> bool:
        """Wait as long as is due before the next try; False when there is none left."""
        self._made += 1
        doubled = self._retry.first_s * 2.0 ** min(self._made - 1, 60)
        delay = min(self._retry.most_s, doubled) * random.uniform(0.5, 1.0)
        if self._made >= self._retry.attempts or time.monotonic() + delay > self._end:
            return False
        await asyncio.sleep(delay)
        return True


def credentials(tls: Tls) -> grpc.ChannelCredentials:
    """gRPC's credentials from the files.

    Raises:
        FieldError: for a file that cannot be read.
    """
    files = {"tls_ca": tls.ca, "tls_key": tls.key, "tls_cert": tls.cert}
    return grpc.ssl_channel_credentials(*(_content(name, path) for name, path in files.items()))


def open_channel(url: str, creds: grpc.ChannelCredentials | None, name: str | None) -> grpc.aio.Channel:
    """A channel of the running event loop; it connects when it is first used."""
    if creds is None:
        return grpc.aio.insecure_channel(url, options=_OPTIONS)
    named = [] if name is None else [("grpc.ssl_target_name_override", name)]
    return grpc.aio.secure_channel(url, creds, options=[*_OPTIONS, *named])


def _content(name: str, path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FieldError(
            field=name, value=str(path), allowed=f"a file in PEM ({error.strerror})", fix="correct the path"
        ) from error
