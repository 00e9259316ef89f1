"""Server-sent events: committed text, drafts for those who ask, usage, errors, the end."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Send

from nemo_diffgemma.errors import FieldError
from triton_repo.client.failures import GenerationError
from triton_repo.client.wire import Response
from triton_repo.gateway.answers import Counter, Form
from triton_repo.gateway.errors import ApiError, internal, of_failure, unavailable
from triton_repo.gateway.errors import deadline as deadline_error

_LOG = logging.getLogger(__name__)


class EventStream(StreamingResponse):
    """Sends events; closes their source when the client hangs up."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]):
        # Proxies that buffer would hold back what is a stream only for being prompt.
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._events):
            await super().stream_response(send)


def premature(reason: str | None) -> ApiError | None:
    """The error that a finish reason is which OpenAI's API does not know; None for ``stop`` and ``length``."""
    if reason == "deadline":
        return deadline_error()
    return unavailable("the generation was ended by the server") if reason == "cancelled" else None


async def events(
    form: Form, responses: AsyncIterator[tuple[int, Response]], counter: Counter, record: dict[str, Any], *, usage: bool
) -> AsyncGenerator[bytes, None]:
    """The events of one request.

    Args:
        form: how chunks are written.
        responses: with the number of their choice.
        counter: knows the tokens.
        record: of the log; gets ``error`` when the stream ends with one.
        usage: also a chunk with the usage.
    """
    opened: set[int] = set()
    try:
        async for index, response in responses:
            if index not in opened:
                opened.add(index)
                for chunk in form.opening(index):
                    yield _event(chunk)
            if response.provisional:
                yield _event(form.draft(index, response))
                continue
            if response.text:
                yield _event(form.text(index, response.text))
            if error := premature(response.finish_reason):
                raise error
            if response.finish_reason is not None:
                yield _event(form.end(index, response.finish_reason))
        if usage:
            yield _event(form.usage(counter.usage()))
        yield b"data: [DONE]\n\n"
    except (ApiError, GenerationError, FieldError) as error:
        failure = error if isinstance(error, ApiError) else of_failure(error)
        record["error"] = failure.code
        yield _event(failure.body())
    except Exception:
        _LOG.exception("a stream failed")
        record["error"] = internal().code
        yield _event(internal().body())


def _event(chunk: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()
