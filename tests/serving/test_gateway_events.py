"""Server-sent events as they are written: signs of life while nothing comes, and no line broken by a text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from triton_repo.client.wire import Response
from triton_repo.gateway.answers import CompletionForm
from triton_repo.gateway.stream import events, paced
from triton_repo.gateway.usage import Counter


def response(text: str, reason: str | None = None) -> Response:
    return Response(text, (5,), False, 0, 1, 0.5, reason, 3, 1)


def test_silence_becomes_comments_and_nothing_is_lost() -> None:
    async def run() -> bytes:
        more, seen = asyncio.Event(), 0

        async def slow() -> AsyncGenerator[tuple[int, Response], None]:
            await more.wait()
            yield 0, response("red ")
            await more.wait()
            yield 0, response("lamp", "stop")

        form = CompletionForm("1", "diffgemma", chat=True, usage=False)
        written = b""
        async for event in events(form, paced(slow(), 0.01), Counter(1), {}):
            written += event
            seen += event.startswith(b":")
            # twice before the first text, twice before the second
            more.set() if seen in (2, 4) else None
            more.clear() if b"red" in event else None
        return written

    written = asyncio.run(run())
    before, between = written.partition(b"data: ")[0], written.partition(b"red ")[2].partition(b"lamp")[0]
    assert before.count(b": waiting\n\n") >= 2
    assert between.count(b": waiting\n\n") >= 2
    said = [json.loads(line[6:]) for line in written.decode().split("\n") if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in said) == "red lamp"
    assert written.endswith(b"data: [DONE]\n\n")


def test_leaving_while_nothing_comes_closes_the_source() -> None:
    closed: list[str] = []

    async def run() -> None:
        async def endless() -> AsyncGenerator[tuple[int, Response], None]:
            try:
                await asyncio.Event().wait()
                yield 0, response("")
            finally:
                closed.append("source")

        waiting = paced(endless(), 0.01)
        assert await anext(waiting) is None
        await waiting.aclose()

    asyncio.run(run())
    assert closed == ["source"]


def test_no_character_of_a_text_ends_a_line() -> None:
    text = "a\u2028b\u2029c\u0085d\r\n\x0b\x0c\x1c\x1d\x1e größe 日本"

    async def run() -> list[bytes]:
        async def one() -> AsyncGenerator[tuple[int, Response], None]:
            yield 0, response(text, "stop")

        form = CompletionForm("1", "diffgemma", chat=False, usage=True)
        return [event async for event in events(form, one(), Counter(1), {})]

    written = asyncio.run(run())
    chunks: list[Any] = []
    for event in written[:-1]:
        # as Python's own reading of lines splits them, which knows most ends of lines
        line, end = event.decode().splitlines()
        assert (line[:6], end) == ("data: ", "")
        chunks.append(json.loads(line[6:]))
    assert chunks[0]["choices"][0]["text"] == text
    assert "größe 日本".encode() in written[0]
