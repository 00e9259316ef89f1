"""What a client's connection is made of: channel options, TLS files read, waiting between tries."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import grpc

from nemo_diffgemma.errors import FieldError
from triton_repo.client.settings import Retry, Tls
from triton_repo.loopback import is_own

_OPTIONS = [
    # gRPC's own limit of 4 MB would cut a long prompt's messages.
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # gRPC would wait a second before it connects again, and fail every try of ours until then.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


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
    # no proxy can reach this machine's own addresses
    options = [*_OPTIONS, ("grpc.enable_http_proxy", 0)] if is_own(url.rpartition(":")[0]) else _OPTIONS
    if creds is None:
        return grpc.aio.insecure_channel(url, options=options)
    named = [] if name is None else [("grpc.ssl_target_name_override", name)]
    return grpc.aio.secure_channel(url, creds, options=[*options, *named])


def _content(name: str, path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FieldError(
            field=name, value=str(path), allowed=f"a file in PEM ({error.strerror})", fix="correct the path"
        ) from error
