"""The load generator: arrivals, prompts, figures, and the driver with a server that is a coroutine."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import subprocess
import sys
from collections.abc import AsyncGenerator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_diffgemma.errors import FieldError
from triton_repo import bench
from triton_repo.failures import Refused, Unavailable
from triton_repo.load import prompts
from triton_repo.load.arrivals import poisson, within
from triton_repo.load.driver import Load, run_until
from triton_repo.load.picture import write_picture
from triton_repo.load.record import BlockSeen, Record
from triton_repo.load.statistics import Distribution, rate_over_time, summarize
from triton_repo.wire import Response


def response(tokens: int, *, last: bool = False, provisional: bool = False) -> Response:
    return Response("x", (5,) * tokens, provisional, 0, 3, 0.1, "stop" if last else None, 1, tokens)


def test_poisson_arrivals_have_the_rate_and_spread_of_their_process() -> None:
    times = list(islice(poisson(20.0, seed=3), 20_000))
    gaps = np.diff([0.0, *times])
    assert gaps.min() > 0
    # Exponential gaps: mean and standard deviation are both 1 / rate, to four standard errors.
    assert gaps.mean() == pytest.approx(0.05, rel=4 / math.sqrt(20_000))
    assert gaps.std() == pytest.approx(0.05, rel=0.06)
    assert times == list(islice(poisson(20.0, seed=3), 20_000))
    assert times != list(islice(poisson(20.0, seed=4), 20_000))


def test_arrivals_end_with_the_duration() -> None:
    times = list(within(poisson(50.0, seed=0), 2.0))
    assert times == [t for t in islice(poisson(50.0, seed=0), 1000) if t <= 2.0]
    assert next(within(poisson(50.0, seed=0), None)) == times[0]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_percentiles_are_interpolated(values: list[float]) -> None:
    found = Distribution.of([None, *values])
    assert found is not None
    ordered = sorted(values)
    for share, value in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        place = share * (len(ordered) - 1)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        assert value == pytest.approx(low + (place - math.floor(place)) * (high - low))
    assert (found.count, found.max) == (len(values), ordered[-1])
    assert found.mean == pytest.approx(statistics.fmean(values))


def test_the_figures_of_a_load() -> None:
    records = [
        Record(0, 0.0, 0.5, 4.0, "length", (BlockSeen(1.0, 32, 4), BlockSeen(3.0, 32, 2), BlockSeen(4.0, 6, 8))),
        Record(1, 1.0, 1.0, 3.0, "stop", (BlockSeen(3.0, 10, 2),)),
        Record(2, 2.0, 2.0, 5.0, "deadline", (BlockSeen(4.5, 32, 9), BlockSeen(5.0, 1, 1))),
        Record(3, 2.0, 2.0, 2.1, "refused", (), "no"),
        Record(4, 2.0, 2.0, 2.1, "refused", (), "no"),
    ]
    found = summarize(records)
    assert (found.requests, found.answered, found.errors) == (5, 2, {"deadline": 1, "refused": 2})
    assert (found.seconds, found.requests_per_second, found.tokens_per_second) == (5.0, 0.4, 16.0)
    assert found.tokens_per_step == 80 / 16
    assert found.first_block is not None
    assert (found.first_block.count, found.first_block.mean) == (2, 1.5)  # from when they were due
    assert found.block is not None
    assert (found.block.count, found.block.mean) == (2, 1.5)
    assert found.latency is not None
    assert found.latency.max == 4.0
    assert found.request_tokens_per_second is not None
    assert found.request_tokens_per_second.max == 70 / 3.5  # from when they were sent
    assert found.steps_per_canvas is not None
    assert (found.steps_per_canvas.count, found.steps_per_canvas.mean) == (4, 4.0)
    assert found.late is not None
    assert found.late.max == 0.5


def test_the_rate_over_time_holds_every_token() -> None:
    records = [Record(0, 0.0, 0.0, 10.0, "stop", (BlockSeen(0.5, 3, 1), BlockSeen(9.9, 7, 1)))]
    middles, rates = rate_over_time(records, 5)
    assert middles == [1.0, 3.0, 5.0, 7.0, 9.0]
    assert rates == [1.5, 0.0, 0.0, 0.0, 3.5]
    assert rate_over_time([], 5) == ([], [])


def test_no_answer_still_makes_a_report(tmp_path: Path) -> None:
    assert summarize([]).seconds == 0
    records = [Record(0, 0.0, 0.0, 1.0, "refused", (), "no")]
    assert summarize(records).first_block is None
    write_picture(records, "nothing", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_closed_loop_keeps_so_many_in_flight() -> None:
    most = 0
    asked: list[int] = []

    async def ask(number: int) -> AsyncGenerator[Response, None]:
        nonlocal most
        asked.append(number)
        most = max(most, load.in_flight)
        yield response(9, provisional=True)
        await asyncio.sleep(0.001)
        yield response(4)
        yield response(2, last=True)

    load = Load(ask, requests=20, duration=None, on_change=lambda: None)
    asyncio.run(load.closed(3))
    assert (most, load.in_flight, load.errors, sorted(asked)) == (3, 0, 0, list(range(20)))
    assert [r.tokens for r in load.records] == [6] * 20  # drafts do not count
    assert all(r.due <= r.sent <= r.blocks[0].at <= r.ended for r in load.records)


def test_an_open_loop_does_not_wait_and_counts_from_the_intended_arrival() -> None:
    release = asyncio.Event()

    async def ask(number: int) -> AsyncGenerator[Response, None]:
        if number == 9:
            release.set()
        await release.wait()  # nobody is answered before all have been sent
        yield response(1, last=True)

    load = Load(ask, requests=10, duration=None, on_change=lambda: None)
    asyncio.run(asyncio.wait_for(load.open(iter([i / 100 for i in range(20)])), 30))
    records = sorted(load.records, key=lambda record: record.index)
    assert [record.due for record in records] == [i / 100 for i in range(10)]
    assert all(record.sent >= record.due for record in records)
    first = records[0].first_block_s
    assert first is not None
    assert first >= 0.09  # it waited for the tenth


def test_errors_are_kept_by_kind() -> None:
    async def ask(number: int) -> AsyncGenerator[Response, None]:
        if number == 1:
            raise Refused("no such thing")
        yield response(3, last=number != 2)
        if number == 3:
            raise Unavailable("gone")

    load = Load(ask, requests=4, duration=None, on_change=lambda: None)
    asyncio.run(load.closed(1))
    assert [r.outcome for r in load.records] == ["stop", "refused", "failed", "unavailable"]
    assert [r.message for r in load.records] == ["", "no such thing", "", "gone"]
    assert (load.errors, load.records[3].tokens) == (3, 3)


def test_stopping_a_load_ends_what_is_in_flight() -> None:
    closed: list[int] = []

    async def ask(number: int) -> AsyncGenerator[Response, None]:
        try:
            yield response(1, last=number == 0)
            if number:
                await asyncio.sleep(3600)
        finally:
            closed.append(number)

    async def run() -> tuple[bool, bool]:
        stop = asyncio.Event()
        load = Load(ask, requests=None, duration=3600.0, on_change=lambda: stop.set() if closed else None)
        whole = await run_until(asyncio.create_task(load.closed(2)), stop)
        assert [record.index for record in load.records] == [0]
        short = Load(ask, requests=1, duration=None, on_change=lambda: None)
        return whole, await run_until(asyncio.create_task(short.closed(1)), asyncio.Event())

    assert asyncio.run(run()) == (False, True)
    assert sorted(closed)[:2] == [0, 0]
    assert len(closed) >= 3


def test_prompts_of_a_file_are_asked_in_turn(tmp_path: Path) -> None:
    file = tmp_path / "prompts"
    lines = [
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "the answer"}]}),
        '{"prompt": "b"}',
        "",
        "plain, größe",
    ]
    file.write_text("\n".join(lines), encoding="utf-8")
    ask = prompts.from_file(file)
    asked = [ask(i)["messages"] for i in range(4)]
    assert [[m["content"] for m in messages] for messages in asked] == [["a"], ["b"], ["plain, größe"], ["a"]]
    assert all(messages[0]["role"] == "user" for messages in asked)


def test_a_line_of_prompts_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes('\ufeff{"prompt": "a\u2028b\x85"}\r\nplain\n'.encode())
    ask = prompts.from_file(file)
    assert [ask(i)["messages"][0]["content"].strip() for i in range(3)] == ["a\u2028b", "plain", "a\u2028b"]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"text": "a"}',
        '{"messages": []}',
        '{"messages": "a"}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "assistant", "content": "a"}]}',
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts"
    file.write_text(f"fine\n{line}\n")
    with pytest.raises(FieldError, match=r"^prompts:2: "):
        prompts.from_file(file)


def test_synthetic_prompts_have_the_length_and_no_common_beginning() -> None:
    ask = prompts.synthetic(40, seed=1)
    ids = [ask(i)["input_ids"] for i in range(50)]
    assert {len(row) for row in ids} == {40}
    assert len({tuple(row[:8]) for row in ids}) == 50
    assert all(64 <= token < 256 for row in ids for token in row)
    assert ask(7) == prompts.synthetic(40, seed=1)(7) != prompts.synthetic(40, seed=2)(7)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--rate=0"], "rate: 0.0 cannot be used; allowed: a number > 0; fix: pass --rate 10"),
        (["--rate=nan"], "rate: nan cannot be used; allowed: a number > 0; fix: pass --rate 10"),
        (["--duration=-1"], "duration: -1.0 cannot be used; allowed: a number > 0; fix: pass --duration 10"),
        (["--requests=0"], "requests: 0 cannot be used; allowed: an integer >= 1; fix: pass --requests 1"),
        (["--concurrency=0"], "concurrency: 0 cannot be used; allowed: an integer >= 1; fix: pass --concurrency 1"),
        (["--input-tokens=0"], "input_tokens: 0 cannot be used; allowed: an integer >= 1; fix: pass --input-tokens 1"),
        (["--max-tokens=0"], "max_tokens: 0 cannot be used; allowed: an integer >= 1; fix: pass --max-tokens 1"),
        (["--warm-up=-1"], "warm_up: -1 cannot be used; allowed: an integer >= 0; fix: pass --warm-up 0"),
        (["--seed=-1"], "seed: -1 cannot be used; allowed: an integer from 0 to 2**63 - 1; fix: pass --seed 0"),
        (["--png=/nowhere/a.png"], "png: '/nowhere/a.png' cannot be used; allowed: a file in a folder that exists; "),
        (["--json=/nowhere/a"], "json: '/nowhere/a' cannot be used; allowed: a file in a folder that exists; fix: "),
        (["--prompts=/nowhere"], "prompts: '/nowhere' cannot be used; allowed: a text file (No such file or "),
        (["--tls-ca=/nowhere"], "tls_ca: '/nowhere' cannot be used; allowed: a file in PEM (No such file or "),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(arguments) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.startswith(f"error: {text}")
    assert errors.count("\n") == 1


def test_the_command_needs_no_torch() -> None:
    code = "import sys, triton_repo.cli, triton_repo.bench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
