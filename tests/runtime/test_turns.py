"""Whose turn it is, and how requests end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.runtime.engines import (
    ENDLESS,
    Gate,
    answer,
    blocks,
    drafts,
    events_of,
    reason,
    request,
    stats,
    without_times,
)
from trtllm_build import Engine
from trtllm_build.runtime.request import Event
from trtllm_build.runtime.scheduler import QueueFull


def test_a_lower_priority_number_goes_first(small: Callable[..., Engine]) -> None:
    engine = small(slots=1)
    order: list[str] = []
    gate = Gate(engine)
    tickets = [
        engine.submit(request(4, priority=p), lambda event, name=name: order.append(name))
        for name, p in (("late", 5), ("first of two", 0), ("second of two", 0), ("urgent", -3))
    ]
    assert engine.stats().waiting == 4
    gate.open()
    assert all(t.wait(30) for t in tickets)
    assert order == ["urgent", "first of two", "second of two", "late"]


def test_a_full_queue_refuses_and_goes_on(small: Callable[..., Engine]) -> None:
    engine = small(slots=1, queue=1)
    gate = Gate(engine)
    waiting = engine.submit(request(4), lambda event: None)
    with pytest.raises(QueueFull, match="1 requests wait already; the limit is 1"):
        engine.submit(request(4), lambda event: None)
    gate.open()
    assert waiting.wait(30)
    assert engine.submit(request(4), lambda event: None).wait(30)
    assert engine.stats().refused == 1
    assert engine.stats().finished == {"length": 3}


def test_a_batch_of_more_prompts_than_may_wait_is_not_refused(small: Callable[..., Engine]) -> None:
    """Whoever hands over all at once leaves it to the engine when each is queued."""
    engine = small(slots=8, queue=2)
    assert len(engine.generate([[i] for i in range(10, 40)], max_tokens=4, max_denoising_steps=1)) == 30


def test_a_deadline_ends_a_running_request(engine: Engine) -> None:
    """The canvas under way is dropped."""
    (events,) = events_of(engine, request(200, sampler=ENDLESS, deadline=0.4, draft_every=1))
    assert reason(events) == "deadline"
    assert blocks(events)[-1].error is None
    assert 0.4 <= stats(events).seconds < 20
    assert stats(events).denoising_steps >= len(drafts(events)) > 0
    assert engine.stats().running == 0


def test_a_deadline_ends_a_waiting_request(small: Callable[..., Engine]) -> None:
    engine = small(slots=1)
    gate = Gate(engine)
    events: list[Event] = []
    ticket = engine.submit(request(4, deadline=0.05), events.append)
    assert not ticket.wait(0.1)
    gate.open()
    assert ticket.wait(30)
    assert (answer(events), reason(events)) == ([], "deadline")
    assert (stats(events).queue_seconds, stats(events).first_block_seconds) == (None, None)
    assert (stats(events).canvases, stats(events).encoded_tokens) == (0, 0)


def test_a_deadline_that_is_met_changes_nothing(engine: Engine) -> None:
    (early,), (never,) = events_of(engine, request(deadline=60.0)), events_of(engine, request())
    assert without_times(early) == without_times(never)
