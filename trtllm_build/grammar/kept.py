"""What was made last, to be had again without making it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

_T = TypeVar("_T")
MOST_KEPT = 256
MOST_BYTES = 256 * 2**20


class Kept(Generic[_T]):
    """Things that were asked for last: :data:`MOST_KEPT` of them, of :data:`MOST_BYTES` together. Threads may share it.

    One alone may be larger.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[Hashable, tuple[_T, int]] = OrderedDict()
        self._bytes = 0

    def find(self, key: Hashable) -> _T | None:
        """What is kept under a key."""
        with self._lock:
            if key not in self._found:
                return None
            self._found.move_to_end(key)
            return self._found[key][0]

    def keep(self, key: Hashable, value: _T, size: int) -> _T:
        """Keep something of so many bytes; gives what is kept, which another thread may have brought before."""
        with self._lock:
            kept, _ = self._found.setdefault(key, (value, size))
            self._found.move_to_end(key)
            self._bytes += size if kept is value else 0
            while len(self._found) > MOST_KEPT or (self._bytes > MOST_BYTES and len(self._found) > 1):
                self._bytes -= self._found.popitem(last=False)[1][1]
            return kept
