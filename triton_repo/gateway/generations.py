"""Several generations side by side, and a client that hangs up meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from triton_repo.client.wire import Response

_T = TypeVar("_T")
# Responses that wait for a client that reads slowly; then its generations wait too.
_AHEAD = 64


async def merged(
    generations: Sequence[AsyncGenerator[Response, None]],
) -> AsyncGenerator[tuple[int, Response], None]:
    """Responses of all generations as they come, each with its generation's number.

    Closing it, or one that fails, cancels all of them on the server.
    """
    arrived: asyncio.Queue[tuple[int, Response] | Exception | None] = asyncio.Queue(_AHEAD)

    async def pump(index: int, generation: AsyncGenerator[Response, None]) -> None:
        try:
            async with aclosing(generation):
                async for response in generation:
                    await arrived.put((index, response))
            await arrived.put(None)
        except Exception as error:
            await arrived.put(error)

    tasks = [asyncio.create_task(pump(index, generation)) for index, generation in enumerate(generations)]
    running = len(tasks)
    try:
        while running:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless_gone(request: Request, work: Awaitable[_T]) -> _T:
    """The result of ``work``, which is cancelled when the client hangs up.

    Raises:
        ClientDisconnect: when it has.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
