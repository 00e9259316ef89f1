"""Who may ask, and how much: API keys from a file that may change while the gateway runs."""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from nemo_diffgemma.errors import FieldError
from triton_repo.gateway.errors import refused, too_many, unauthorized
from triton_repo.keys import ApiKey, digest, read

# What probes ask, who have no key; it answers with one word.
_OPEN = ("/health",)
_WINDOW_S = 60.0
_LOG = logging.getLogger(__name__)


@dataclass
class _Use:
    """What one name has under way, and what it may still use."""

    running: int = 0
    tokens: float = 0.0
    seen: float = 0.0


class Share:
    """What one request has of its key's limits.

    Args:
        use: its key's.
        limit: most generations of the key at once; None for any number.
        counted: whether the key's tokens are, also those of answers that their clients do not wait for.
    """

    def __init__(self, use: _Use, limit: int | None, *, counted: bool):
        self._use = use
        self._limit = limit
        self.counted = counted
        self.taken = 0
        self.owed: Callable[[], int] = lambda: 0

    def take(self, generations: int) -> None:
        """Run so many more.

        Raises:
            ApiError: 400 for more than the key may ever have at once, 429 for more than it may have now.
        """
        if self._limit is not None and self.taken + generations > self._limit:
            raise refused(
                f"n: {self.taken + generations} answers are more than this key may have at once: {self._limit}"
            )
        if self._limit is not None and self._use.running + generations > self._limit:
            message = f"{self._use.running} requests of this key run already; its limit is {self._limit}"
            raise too_many("requests", message, 1)
        self._use.running += generations
        self.taken += generations


class Access:
    """Admits requests by their key, one customer per name.

    Tokens are a bucket that holds a minute's worth and fills steadily. What a request takes is known when it has ended,
    and is taken from the bucket then; while that owes, the name has to wait.

    Args:
        file: of :mod:`triton_repo.keys`; None admits everybody.
        clock: seconds.

    Raises:
        FieldError: for a file that cannot be used.
    """

    def __init__(self, file: Path | None, clock: Callable[[], float] = time.monotonic):
        self._file = file
        self._clock = clock
        self._uses: dict[str, _Use] = {}
        self._keys: tuple[ApiKey, ...] = ()
        self._mark: object = None
        if file is not None:
            self._mark = _mark(file)
            self._keys = read(file)

    @contextmanager
    def admitted(self, scope: Scope) -> Iterator[None]:
        """While one request runs. Its key's name goes to ``scope["state"]["key"]`` and into the log's record.

        Raises:
            ApiError: 401 without a valid key, 429 beyond a limit.
        """
        record: dict[str, Any] = scope["state"]["record"]
        if self._file is None or scope["path"] in _OPEN:
            yield
            return
        self._refresh()
        key = self._find(Headers(scope=scope).get("authorization", ""))
        scope["state"]["key"] = record["key"] = key.name
        use = self._uses.setdefault(key.name, _Use(tokens=float(key.tokens_per_minute or 0), seen=self._clock()))
        self._refill(use, key)
        _require_tokens(use, key)
        share = scope["state"]["share"] = Share(use, key.requests, counted=key.tokens_per_minute is not None)
        share.take(1)
        try:
            yield
        finally:
            use.running -= share.taken
            if key.tokens_per_minute is not None:
                use.tokens -= share.owed()

    def _refresh(self) -> None:
        """Read the file again when it, or what a link leads to, has changed. One that cannot be used changes nothing:
        a typing error must not lock everybody out."""
        assert self._file is not None
        if (mark := _mark(self._file)) == self._mark:
            return
        self._mark = mark
        try:
            self._keys = read(self._file)
        except FieldError as error:
            _LOG.error("the API key file cannot be used, the keys before stay", extra={"fields": {"why": str(error)}})
            return
        names = {key.name for key in self._keys}
        self._uses = {name: use for name, use in self._uses.items() if name in names or use.running}
        _LOG.info("API keys were read again", extra={"fields": {"keys": len(self._keys)}})

    def _find(self, header: str) -> ApiKey:
        scheme, _, said = header.partition(" ")
        given = digest(said.strip())
        # All are compared, each in constant time: how long it takes says nothing of which is near.
        found = [key for key in self._keys if hmac.compare_digest(key.digest, given)]
        if scheme.lower() != "bearer" or not found:
            raise unauthorized(missing=not header)
        return found[0]

    def _refill(self, use: _Use, key: ApiKey) -> None:
        now = self._clock()
        if key.tokens_per_minute is not None:
            rate = key.tokens_per_minute / _WINDOW_S
            use.tokens = min(float(key.tokens_per_minute), use.tokens + (now - use.seen) * rate)
        use.seen = now


def _require_tokens(use: _Use, key: ApiKey) -> None:
    if key.tokens_per_minute is not None and use.tokens <= 0:
        # One token more than is owed.
        wait = ceil((1 - use.tokens) * _WINDOW_S / key.tokens_per_minute)
        message = f"this key has used its {key.tokens_per_minute} tokens per minute"
        raise too_many("tokens", message, wait)


def _mark(file: Path) -> object:
    """Changes with the file's contents; a Secret of Kubernetes is exchanged by a link to another folder."""
    try:
        found = os.stat(file)
    except OSError as error:
        return error.errno
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
