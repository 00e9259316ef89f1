"""What the engine counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.runtime.engines import (
    CANVAS,
    CONTROLS,
    ENDLESS,
    Gate,
    answer,
    controlled,
    events_of,
    reason,
    request,
    stats,
)
from trtllm_build import Engine
from trtllm_build.runtime.request import Event


def test_stats_are_on_the_last_block(engine: Engine) -> None:
    (events,) = events_of(engine, request(40, prompt=tuple(range(10, 31))))
    found = stats(events)
    assert (found.prompt_tokens, found.reused_tokens, found.encoded_tokens) == (21, 0, 21 + 2 * CANVAS)
    assert (found.canvases, found.denoising_steps) == (3, 12)
    assert 1 <= found.accepted_per_step <= CANVAS
    assert found.cache_bytes > 0
    assert found.queue_seconds is not None
    assert found.first_block_seconds is not None
    assert 0 <= found.queue_seconds <= found.first_block_seconds <= found.seconds < 60


def test_totals_add_up(small: Callable[..., Engine]) -> None:
    engine = small()
    empty = engine.stats()
    assert (empty.tokens, empty.finished, empty.cache_bytes) == (0, {}, 0)
    assert (empty.steps_per_canvas, empty.tokens_per_step, empty.queue_seconds) == (None, None, None)
    requests = [controlled(name) for name in CONTROLS] + [request(i) for i in range(1, 30, 7)]
    events = events_of(engine, *requests)
    events += events_of(engine, request(40, sampler=ENDLESS, deadline=0.05))
    gate = Gate(engine, sampler=ENDLESS)
    gate.ticket.cancel()
    gate.open()
    events.append(gate.events)
    total, each = engine.stats(), [stats(e) for e in events]
    assert total.finished == Counter(map(reason, events))
    assert set(total.finished) == {"stop", "length", "deadline", "cancelled"}
    assert total.tokens == sum(len(answer(e)) for e in events)
    assert total.canvases == sum(s.canvases for s in each)
    assert total.denoising_steps == sum(s.denoising_steps for s in each)
    assert total.encoded_tokens == sum(s.encoded_tokens for s in each)
    assert total.reused_tokens == 0
    assert (total.waiting, total.running, total.refused) == (0, 0, 0)
    assert total.steps_per_canvas == pytest.approx(total.denoising_steps / total.canvases)
    assert total.tokens_per_step == pytest.approx(total.tokens / total.denoising_steps)
    accepted = sum(s.accepted_per_step * s.denoising_steps for s in each)
    assert total.accepted_per_step == pytest.approx(accepted / total.denoising_steps)
    assert total.cache_bytes > 0


def test_totals_count_a_request_by_the_time_its_end_is_seen(engine: Engine) -> None:
    """Whoever has read the last block and then asks must not find the request still running."""
    seen: list[tuple[int, int]] = []
    before = engine.stats()

    def ask(event: Event) -> None:
        now = engine.stats()
        seen.append((now.running, sum(now.finished.values()) - sum(before.finished.values())))

    assert engine.submit(request(4), ask).wait(30)
    assert seen == [(0, 1)]
