"""A queue in which clients take turns."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Turns(Generic[_T]):
    """What each client puts in comes out in that order; between any two of one client, one of each other that waits."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[_T]] = {}  # by client, whose turn it is first
        self._changed = threading.Condition()

    def put(self, client: str, item: _T) -> None:
        """Append an item of ``client``'s."""
        with self._changed:
            self._waiting.setdefault(client, deque()).append(item)
            self._changed.notify()

    def get(self) -> _T:
        """Take the next item; waits for one."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            client = next(iter(self._waiting))
            items = self._waiting.pop(client)
            item = items.popleft()
            if items:
                self._waiting[client] = items
            return item

    def drop(self, client: str) -> _T | None:
        """Take out the item that ``client`` put in last; None when it has none here."""
        with self._changed:
            items = self._waiting.get(client)
            if not items:
                return None
            item = items.pop()
            if not items:
                del self._waiting[client]
            return item
