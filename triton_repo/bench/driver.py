"""Sends requests as they are due, and records what comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, suppress
from itertools import count, islice

from triton_repo.bench.arrivals import within
from triton_repo.bench.record import BlockSeen, RequestRecord
from triton_repo.client.failures import Cancelled, GenerationError, Refused, TimedOut, Unavailable, Unreachable
from triton_repo.client.wire import Response

Ask = Callable[[int], AsyncGenerator[Response, None]]
"""The responses to the request of a number."""

_KINDS: tuple[tuple[type[GenerationError], str], ...] = (
    (Refused, "refused"),
    (Unreachable, "unreachable"),
    (Unavailable, "unavailable"),
    (TimedOut, "timed_out"),
    (Cancelled, "cancelled"),
    (GenerationError, "failed"),
)


class Load:
    """One load. ``records`` grows while it runs, and is whole when it has ended or was stopped.

    Args:
        ask: sends a request.
        requests: most requests; None for as many as the duration holds.
        duration: seconds after which no more are sent; None for no limit. One of the two is given.
        on_change: called when a request is sent or ends.
    """

    def __init__(self, ask: Ask, requests: int | None, duration: float | None, on_change: Callable[[], None]):
        self.records: list[RequestRecord] = []
        self.in_flight = 0
        self.errors = 0
        self.began = time.perf_counter()
        self._ask = ask
        self._requests = requests
        self._duration = duration
        self._on_change = on_change

    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self.began

    async def closed(self, concurrency: int) -> None:
        """``concurrency`` clients, each of which sends its next request when its last has ended."""
        self.began = time.perf_counter()
        numbers = islice(count(), self._requests)
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(self._client(numbers))

    async def open(self, arrivals: Iterator[float]) -> None:
        """A request at each of ``arrivals`` (seconds, ascending), whatever has become of those before."""
        self.began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number, due in enumerate(islice(within(arrivals, self._duration), self._requests)):
                await asyncio.sleep(due - self.elapsed())
                group.create_task(self._request(number, due))

    async def _client(self, numbers: Iterator[int]) -> None:
        due = self.elapsed()
        while self._duration is None or due <= self._duration:
            number = next(numbers, None)
            if number is None:
                return
            await self._request(number, due)
            due = self.elapsed()

    async def _request(self, number: int, due: float) -> None:
        sent, blocks, outcome, message = self.elapsed(), [], "failed", ""
        self.in_flight += 1
        self._on_change()
        try:
            async with aclosing(self._ask(number)) as responses:
                async for response in responses:
                    if not response.provisional:
                        seen = BlockSeen(self.elapsed(), len(response.token_ids), response.denoising_steps)
                        blocks.append(seen)
                        outcome = response.finish_reason or outcome
        except GenerationError as error:
            outcome, message = next(kind for known, kind in _KINDS if isinstance(error, known)), str(error)
        finally:
            self.in_flight -= 1
        # A request that was cancelled with the load has no outcome.
        record = RequestRecord(number, due, sent, self.elapsed(), outcome, tuple(blocks), message)
        self.records.append(record)
        self.errors += not record.answered
        self._on_change()


async def run_until(work: asyncio.Task[None], stop: asyncio.Event) -> bool:
    """Wait for ``work``, or cancel it when ``stop`` is set; returns whether it ended by itself.

    Raises:
        Exception: what ``work`` raised.
    """
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if work.done():
        await work
        return True
    work.cancel()
    with suppress(asyncio.CancelledError):
        await work
    return False
