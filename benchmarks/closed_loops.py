"""The same closed loop twice, each for a process of its own: on an engine in this process, and through a server."""

from __future__ import annotations

import asyncio
import resource
import statistics
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from triton_repo.bench import prompts
from triton_repo.bench.driver import Load
from triton_repo.bench.record import BlockSeen, RequestRecord
from triton_repo.client.client import Client, Refused, Retry
from triton_repo.client.wire import Response

if TYPE_CHECKING:
    from trtllm_build import Engine

_loaded: Engine | None = None


@dataclass(frozen=True)
class Work:
    """What is asked, the same on both sides; request N has seed N.

    Args:
        file: prompts; None for random token ids.
        input_tokens: token ids a prompt, without a file.
        max_tokens: most tokens of an answer.
        sampler: fields of ``SamplerConfig``.
        others: inputs that are fields of ``Request`` too.
    """

    file: Path | None
    input_tokens: int
    max_tokens: int
    sampler: dict[str, Any]
    others: dict[str, Any]

    def prompts(self) -> prompts.Prompts:
        """Inputs by number."""
        return prompts.synthetic(self.input_tokens, 0) if self.file is None else prompts.from_file(self.file)


@dataclass(frozen=True)
class Measured:
    """What a loop saw.

    Args:
        records: of its requests.
        tokens: of each answer, by number.
        cpu_s: seconds of CPU that this process took.
    """

    records: list[RequestRecord]
    tokens: dict[int, tuple[int, ...]]
    cpu_s: float


def load(bundle: Path) -> int:
    """Load the engine into this process; returns its slots."""
    from trtllm_build import load_engine

    global _loaded
    _loaded = load_engine(bundle)
    return _loaded.limits.slots


def in_process(work: Work, concurrency: int, requests: int) -> Measured:
    """The loop on the loaded engine. A request begins before its prompt is tokenised, as a client's does."""
    from trtllm_build.runtime.request import Block, Event, Request

    engine = _loaded
    assert engine is not None
    ask = work.prompts()
    sampler = replace(engine.sampler, **work.sampler)
    ended: SimpleQueue[RequestRecord] = SimpleQueue()
    tokens: dict[int, tuple[int, ...]] = {}
    cpu, began = _cpu_s(), time.perf_counter()

    def send(number: int) -> None:
        due = time.perf_counter() - began
        inputs = ask(number)
        ids = inputs.get("input_ids")
        if ids is None:
            assert engine.tokenizer is not None
            ids = engine.tokenizer.chat(inputs["messages"])
        blocks: list[BlockSeen] = []
        tokens[number] = ()

        def on_event(event: Event) -> None:
            at = time.perf_counter() - began
            assert isinstance(event, Block)
            blocks.append(BlockSeen(at, len(event.token_ids), event.denoising_steps))
            tokens[number] += event.token_ids
            if event.finish_reason is not None:
                ended.put(RequestRecord(number, due, due, at, event.finish_reason, tuple(blocks), event.error or ""))

        engine.submit(Request(tuple(ids), work.max_tokens, number, sampler, **work.others), on_event)

    for number in range(min(concurrency, requests)):
        send(number)
    records: list[RequestRecord] = []
    for number in range(concurrency, requests + concurrency):
        if len(records) == requests:
            break
        records.append(ended.get())
        if number < requests:
            send(number)
    return Measured(records, tokens, _cpu_s() - cpu)


def through_server(url: str, work: Work, concurrency: int, requests: int) -> Measured:
    """The loop over gRPC, streaming, by the asynchronous client."""
    cpu = _cpu_s()
    records, tokens = asyncio.run(_through_server(url, work, concurrency, requests))
    return Measured(records, tokens, _cpu_s() - cpu)


async def _through_server(
    url: str, work: Work, concurrency: int, requests: int
) -> tuple[list[RequestRecord], dict[int, tuple[int, ...]]]:
    prompts_by_number = work.prompts()
    tokens: dict[int, tuple[int, ...]] = {}
    async with Client(url, retry=Retry(attempts=1)) as client:
        await client.server_metadata()  # the connection is not what is measured

        async def ask(number: int) -> AsyncGenerator[Response, None]:
            inputs = {**prompts_by_number(number), **work.sampler, **work.others}
            responses = client.generate(max_tokens=work.max_tokens, seed=number, **inputs)
            tokens[number] = ()
            async with aclosing(responses):
                async for response in responses:
                    tokens[number] += response.token_ids
                    yield response

        load = Load(ask, requests, None, on_change=lambda: None)
        await load.closed(concurrency)
        return load.records, tokens


def refused(url: str, requests: int) -> float:
    """Seconds, median, from sending a request that the served model refuses to its answer: no tokens, no engine."""
    return asyncio.run(_refused(url, requests))


async def _refused(url: str, requests: int) -> float:
    took: list[float] = []
    async with Client(url, retry=Retry(attempts=1)) as client:
        await client.server_metadata()
        for _ in range(requests):
            began = time.perf_counter()
            try:
                async for _response in client.generate("", beam_width=2):
                    raise AssertionError("a beam width of 2 is refused")
            except Refused:
                took.append(time.perf_counter() - began)
    return statistics.median(took)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
