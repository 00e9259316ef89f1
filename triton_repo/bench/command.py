"""``diffgemma bench``: load on a running server, and what it made of it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nemo_diffgemma.errors import FieldError
from triton_repo.bench.arrivals import poisson
from triton_repo.bench.driver import Load, run_until
from triton_repo.bench.options import BenchOptions, parse_arguments
from triton_repo.bench.picture import write_picture
from triton_repo.bench.record import RequestRecord
from triton_repo.bench.statistics import summarize
from triton_repo.bench.table import print_table
from triton_repo.client.client import Client, GenerationError, Response, Retry, ServerMetadata


@dataclass(frozen=True)
class _Outcome:
    server: ServerMetadata
    records: list[RequestRecord]
    interrupted: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load and report.

    Returns:
        0; 1 when no request was answered, 2 for a mistake here or a server that is not there, 130 after Ctrl-C.
    """
    try:
        options = parse_arguments(arguments)
        outcome = asyncio.run(_run(options))
    except KeyboardInterrupt:
        return 130
    except (FieldError, GenerationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, FieldError) else 1
    _report(options, outcome)
    if outcome.interrupted:
        return 130
    return 0 if any(record.answered for record in outcome.records) else 1


async def _run(options: BenchOptions) -> _Outcome:
    # Tried once: a retry would hide that the server had no room.
    async with Client(options.url, tls=options.tls, retry=Retry(attempts=1)) as client:
        server = await client.server_metadata(timeout=10)

        def ask(number: int) -> AsyncGenerator[Response, None]:
            inputs = {**options.prompts(number), **options.inputs, "seed": options.seed + number}
            return client.generate(request_id=f"bench-{number}", **inputs)

        for number in range(options.warm_up):
            async for _ in ask(number):
                pass
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
        with _Bar(options) as bar:
            load = Load(ask, options.requests, options.duration, on_change=lambda: bar.show(load))
            bar.show(load)
            work = load.closed(options.concurrency) if options.rate is None else load.open(_arrivals(options))
            whole = await run_until(asyncio.create_task(work), stop)
        return _Outcome(server, sorted(load.records, key=lambda record: record.index), not whole)


def _arrivals(options: BenchOptions) -> Any:
    assert options.rate is not None
    return poisson(options.rate, options.seed)


class _Bar:
    """What the load has come to, on standard error."""

    def __init__(self, options: BenchOptions):
        columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("", total=options.requests or options.duration)
        self._timed = options.requests is None

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, load: Load) -> None:
        text = f"{len(load.records):,} ended, {load.in_flight:,} in flight, {load.errors:,} errors"
        done = load.elapsed() if self._timed else len(load.records)
        self._progress.update(self._task, completed=done, description=text)


def _report(options: BenchOptions, outcome: _Outcome) -> None:
    summary = summarize(outcome.records)
    console = Console(highlight=False)
    if options.rate is None:
        load, since = f"closed loop of {options.concurrency}", "sending"
    else:
        load, since = f"open loop, Poisson arrivals, {options.rate:g} a second", "the intended arrival"
    title = f"{load}; {outcome.server.name} {outcome.server.version} at {options.url}"
    if outcome.interrupted:
        title += "; interrupted: requests under way were cancelled and are not counted"
    print_table(summary, title, since, console)
    messages = dict.fromkeys(f"{r.outcome}: {r.message}" for r in outcome.records if r.message)
    for message in list(messages)[:3]:
        console.print(f"e.g. {message[:300]}", style="dim", markup=False, soft_wrap=True)
    if options.json is not None:
        value = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "url": options.url,
            "server": asdict(outcome.server),
            "settings": options.settings,
            "times_are_from": since,
            "interrupted": outcome.interrupted,
            "summary": summary.as_json(),
            "requests": [asdict(record) for record in outcome.records],
        }
        options.json.write_text(json.dumps(value, indent=1) + "\n")
    if options.png is not None:
        write_picture(outcome.records, title, options.png)
