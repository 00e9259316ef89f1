"""The blocking client's event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from triton_repo.client import blocking


def test_threads_that_come_first_together_share_one_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    new = asyncio.new_event_loop

    def slow() -> asyncio.AbstractEventLoop:
        time.sleep(0.05)
        return new()

    monkeypatch.setattr(asyncio, "new_event_loop", slow)
    blocking._started.cache_clear()
    start = threading.Barrier(8)

    def first() -> asyncio.AbstractEventLoop:
        start.wait()
        return blocking._loop()

    with ThreadPoolExecutor(8) as pool:
        loops = [pool.submit(first) for _ in range(8)]
        assert len({id(loop.result()) for loop in loops}) == 1
