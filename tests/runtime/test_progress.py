"""What the running engine tells of itself: totals that grow while it works, and each request's timeline."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pytest

from trtllm_build import Engine, load_engine
from trtllm_build.runtime.request import Block, Event, Request, Timeline
from trtllm_build.runtime.stats import Progress, Work
from trtllm_build.runtime.ticket import Ticket
from trtllm_build.sampling import SamplerConfig

FEW = SamplerConfig(max_denoising_steps=4, confidence_threshold=0.0)  # always all four steps
SURE = SamplerConfig(confidence_threshold=1e9, stability_threshold=0)  # always one
ENDLESS = SamplerConfig(max_denoising_steps=100_000, confidence_threshold=0.0)
PROMPT = (7, 8, 9)


@pytest.fixture
def engine(demo_bundle: Path) -> Iterator[Engine]:
    engine = load_engine(demo_bundle)
    yield engine
    engine.close()


def request(max_tokens: int = 40, sampler: SamplerConfig = FEW, **options: int | float) -> Request:
    return Request(PROMPT, max_tokens, seed=3, sampler=sampler, ignore_eos=True, **options)  # type: ignore[arg-type]


def run(engine: Engine, asked: Request) -> list[Block]:
    events: list[Event] = []
    assert engine.submit(asked, events.append).wait(60)
    return [event for event in events if isinstance(event, Block)]


def timeline(blocks: list[Block]) -> Timeline:
    assert blocks[-1].stats is not None
    return blocks[-1].stats.timeline


def test_a_timeline_is_in_order_and_has_every_canvas(engine: Engine) -> None:
    before = time.monotonic()
    blocks = run(engine, request())
    found, after = timeline(blocks), time.monotonic()
    assert found.admitted is not None
    assert found.prefilled is not None
    assert [(c.denoising_steps, c.finished, c.converged) for c in found.canvases] == [(4, True, False)] * 3
    times = [before, found.submitted, found.admitted, found.prefilled]
    for canvas in found.canvases[:-1]:
        assert canvas.committed is not None
        times += [canvas.started, canvas.ended, canvas.committed]
    last = found.canvases[-1]
    assert last.committed is None  # nothing reads it
    times += [last.started, last.ended, found.ended, after]
    assert times == sorted(times)
    # the same instants, as each block and the request's counts say them
    ends = [found.submitted, *(c.ended for c in found.canvases)]
    assert [b.seconds for b in blocks] == [b - a for a, b in itertools.pairwise(ends)]
    assert blocks[-1].stats is not None
    assert blocks[-1].stats.first_block_seconds == blocks[0].seconds
    assert [b.converged for b in blocks] == [False] * 3


def test_a_canvas_that_converged_says_so(engine: Engine) -> None:
    blocks = run(engine, request(sampler=SURE))
    assert [(b.denoising_steps, b.converged) for b in blocks] == [(1, True)] * 3
    assert [c.converged for c in timeline(blocks).canvases] == [True] * 3
    # at the cap, and sure at the same step
    both = SamplerConfig(max_denoising_steps=1, confidence_threshold=1e9, stability_threshold=0)
    assert [b.converged for b in run(engine, request(sampler=both))] == [True] * 3


def test_a_canvas_under_way_at_the_end_is_in_the_timeline_but_no_block(engine: Engine) -> None:
    (last,) = run(engine, request(sampler=ENDLESS, deadline=0.3))
    (canvas,) = timeline([last]).canvases
    assert (last.finish_reason, last.denoising_steps, last.converged) == ("deadline", 0, False)
    assert canvas.denoising_steps > 0
    assert (canvas.finished, canvas.converged, canvas.committed) == (False, False, None)
    assert canvas.ended == timeline([last]).ended


class Held:
    """A request in whose first event, a draft, the engine's thread stands until it is let go."""

    def __init__(self, engine: Engine, asked: Request):
        self._reached, self._go_on = threading.Event(), threading.Event()
        self.ticket: Ticket = engine.submit(asked, self._hold)
        assert self._reached.wait(30)

    def _hold(self, event: Event) -> None:
        self._reached.set()
        assert self._go_on.wait(30)

    def let_go(self) -> None:
        self._go_on.set()
        assert self.ticket.wait(60)


def test_progress_counts_what_runs_and_what_waits(engine: Engine) -> None:
    """Asked while the engine's thread stands still inside a step, which is when it matters."""
    assert engine.progress().work == Work()
    slots = engine.limits.slots
    held = Held(engine, request(8, draft_every=1))
    waiting = engine.submit(request(8), lambda event: None)
    first = engine.progress()
    time.sleep(0.05)
    second = engine.progress()
    now = second.occupancy
    assert (now.running, now.waiting, now.scheduled, now.prefilling, now.slots) == (1, 1, 1, 0, slots)
    # 3 tokens of prompt and a canvas of 16: one page of 64
    assert (now.used_pages, now.page_tokens) == (1, 64)
    assert now.pages == -(-slots * (engine.limits.context + engine.limits.canvas) // 64)
    assert (second.work.denoising_steps, second.work.output_tokens, second.work.input_tokens) == (1, 0, len(PROMPT))
    assert second.work.queue_seconds - first.work.queue_seconds >= 0.05
    assert second.work.compute_seconds - first.work.compute_seconds >= 0.05
    held.let_go()
    assert waiting.wait(60)
    end = engine.progress()
    assert (end.occupancy.running, end.occupancy.waiting, end.occupancy.used_pages) == (0, 0, 0)
    assert (end.work.denoising_steps, end.work.output_tokens, end.work.input_tokens) == (8, 16, 2 * len(PROMPT))
    assert end.work.accepted_tokens > 0


def test_no_total_ever_falls_and_the_last_is_what_requests_say(engine: Engine) -> None:
    """Asked all the time while requests of every kind come, end, are late and are cancelled."""
    seen: list[Progress] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.001):  # without it, it would take the engine its lock, and minutes
            seen.append(engine.progress())

    watcher = threading.Thread(target=watch)
    watcher.start()
    ends: list[Block] = []

    def keep(event: Event) -> None:
        if isinstance(event, Block) and event.finish_reason is not None:
            ends.append(event)

    kinds = [request(n) for n in range(1, 40, 3)] + [request(sampler=ENDLESS, deadline=0.3)] * 3
    tickets = [engine.submit(kind, keep) for kind in kinds]
    cancelled = engine.submit(request(sampler=ENDLESS), keep)
    cancelled.cancel()
    assert all(ticket.wait(60) for ticket in [*tickets, cancelled])
    done.set()
    watcher.join()
    seen.append(engine.progress())
    assert len(seen) > 10
    for before, after in itertools.pairwise(seen):
        assert all(a >= b - 1e-9 for a, b in zip(astuple(after.work), astuple(before.work), strict=True))
    work, stats = seen[-1].work, [end.stats for end in ends if end.stats is not None]
    assert work.denoising_steps == sum(s.denoising_steps for s in stats)
    assert work.output_tokens == engine.stats().tokens == sum(range(1, 40, 3))
    admitted = [s for s in stats if s.queue_seconds is not None]
    assert work.input_tokens == len(PROMPT) * len(admitted)
    assert work.accepted_tokens == sum(round(s.accepted_per_step * s.denoising_steps) for s in stats)
    assert work.queue_seconds + work.compute_seconds == pytest.approx(sum(s.seconds for s in stats), abs=0.1)
    assert work.queue_seconds >= sum(s.queue_seconds or 0.0 for s in admitted) - 1e-6
