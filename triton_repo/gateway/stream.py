"""Server-sent events: committed text, drafts for those who ask, usage, errors, the end, signs of life meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Send

from nemo_diffgemma.errors import FieldError
from triton_repo.client.failures import GenerationError
from triton_repo.client.wire import Response
from triton_repo.gateway.answers import Form
from triton_repo.gateway.errors import ApiError, internal, of_failure, unavailable
from triton_repo.gateway.errors import deadline as deadline_error
from triton_repo.gateway.tools import made_calls
from triton_repo.gateway.usage import Counter

_LOG = logging.getLogger(__name__)
# Ends of lines to readers that know more of them than the standard of events does.
_ESCAPED = {ord(character): f"\\u{ord(character):04x}" for character in "\u0085\u2028\u2029"}
_END: Any = object()


class EventStream(StreamingResponse):
    """Sends events; closes their source when the client hangs up."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str]):
        # Proxies that buffer would hold back what is a stream only for being prompt.
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        self._events = events

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._events):
            await super().stream_response(send)


def premature(reason: str | None) -> ApiError | None:
    """The error that a finish reason is which OpenAI's API does not know; None for ``stop`` and ``length``."""
    if reason == "deadline":
        return deadline_error()
    return unavailable("the generation was ended by the server") if reason == "cancelled" else None


async def paced(
    responses: AsyncGenerator[tuple[int, Response], None], every_s: float
) -> AsyncGenerator[tuple[int, Response] | None, None]:
    """The same responses; None after every ``every_s`` seconds in which none has come."""
    async with aclosing(responses):
        while True:
            coming = asyncio.ensure_future(anext(responses, _END))
            try:
                while not (await asyncio.wait({coming}, timeout=every_s))[0]:
                    yield None
                item = coming.result()
            finally:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
            if item is _END:
                return
            yield item


async def events(
    form: Form, responses: AsyncIterator[tuple[int, Response] | None], counter: Counter, record: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    """The events of one request.

    Args:
        form: how chunks are written.
        responses: with the number of their choice; None for a sign of life.
        counter: has counted them.
        record: of the log; gets ``error`` when the stream ends with one.
    """
    opened: set[int] = set()
    try:
        async for item in responses:
            if item is None:
                # A comment, which every reader of events passes over.
                yield b": waiting\n\n"
                continue
            index, response = item
            if index not in opened:
                opened.add(index)
                for chunk in form.opening(index):
                    yield _event(chunk)
            if response.provisional:
                yield _event(form.draft(index, response))
                continue
            if response.text:
                for chunk in form.text(index, response.text):
                    yield _event(chunk)
            if response.tool_calls:
                for chunk in form.calls(index, made_calls(response.tool_calls)):
                    yield _event(chunk)
            if error := premature(response.finish_reason):
                raise error
            if response.finish_reason is not None:
                for chunk in form.end(index, response.finish_reason, counter):
                    yield _event(chunk)
        for chunk in form.closing(counter):
            yield _event(chunk)
        yield form.last
    except (ApiError, GenerationError, FieldError) as error:
        failure = error if isinstance(error, ApiError) else of_failure(error)
        record["error"] = failure.code
        yield _event(form.failed(failure))
    except Exception:
        _LOG.exception("a stream failed")
        record["error"] = internal().code
        yield _event(form.failed(internal()))


def _event(chunk: dict[str, Any]) -> bytes:
    # Only OpenAI's newer events have a type, which is also the event's.
    name = f"event: {chunk['type']}\n" if "type" in chunk else ""
    data = json.dumps(chunk, ensure_ascii=False).translate(_ESCAPED)
    return f"{name}data: {data}\n\n".encode()
