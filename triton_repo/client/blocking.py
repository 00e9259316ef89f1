"""The client for code that does not run in an event loop."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping, Sequence
from contextlib import aclosing
from functools import cache
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

from triton_repo.client.client import DEFAULT_URL, Cancelled, Client, Decided, Response, Retry, ServerMetadata, Tls

_T = TypeVar("_T")
_STARTING = threading.Lock()


class BlockingClient:
    """:class:`~triton_repo.client.client.Client`, for threads, which may share it.

    Args:
        url: host and port of the gRPC endpoint.
        tls: files for TLS; default: plain text.
        retry: when a server that is not available is asked again.

    Raises:
        FieldError: for a file of ``tls`` that cannot be read.
    """

    def __init__(self, url: str = DEFAULT_URL, *, tls: Tls | None = None, retry: Retry | None = None):
        self._client = Client(url, tls=tls, retry=retry)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; generations under way are cancelled and raise ``Cancelled``."""
        _run(self._client.close())

    def server_metadata(self, *, timeout: float | None = None) -> ServerMetadata:
        """As :meth:`triton_repo.client.client.Client.server_metadata`."""
        return _run(self._client.server_metadata(timeout=timeout))

    def generate(self, prompt: str | None = None, **inputs: Any) -> Generator[Response, None, None]:
        """As :meth:`triton_repo.client.client.Client.generate`; closing the iterator early cancels on the server."""
        return _responses(self._client.generate(prompt, **inputs))

    def decide(self, input: str | None = None, questions: Sequence[Mapping[str, Any]] = (), **inputs: Any) -> Decided:
        """As :meth:`triton_repo.client.client.Client.decide`."""
        return _run(self._client.decide(input, questions, **inputs))


def _responses(responses: AsyncGenerator[Response, None]) -> Generator[Response, None, None]:
    arrived: SimpleQueue[Response | Exception | None] = SimpleQueue()
    future = asyncio.run_coroutine_threadsafe(_collect(responses, arrived), _loop())
    try:
        while (item := arrived.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        future.cancel()


async def _collect(
    responses: AsyncGenerator[Response, None], arrived: SimpleQueue[Response | Exception | None]
) -> None:
    end: Exception | None = Cancelled("the iterator was closed")
    try:
        async with aclosing(responses):
            async for response in responses:
                arrived.put(response)
        end = None
    except Exception as error:
        end = error
    finally:
        arrived.put(end)


def _run(action: Coroutine[Any, Any, _T]) -> _T:
    return asyncio.run_coroutine_threadsafe(action, _loop()).result()


def _loop() -> asyncio.AbstractEventLoop:
    """The event loop that all blocking clients share."""
    with _STARTING:  # a cache alone would let threads that come first together each make one
        return _started()


@cache
def _started() -> asyncio.AbstractEventLoop:
    """It, in a thread of its own for as long as the process lives."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="diffgemma-client", daemon=True)
    thread.start()
    # Not left running while the interpreter takes gRPC down around it.
    atexit.register(_stop, loop, thread)
    return loop


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=5)
