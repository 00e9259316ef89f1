"""Requests with controls among others: nobody notices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.engines import (
    CONTROLS,
    controlled,
    events_of,
    reason,
    request,
    without_times,
)
from trtllm_build import Engine
from trtllm_build.runtime.request import Event


@pytest.fixture(scope="module")
def together(engine: Engine) -> dict[str, list[Event]]:
    """All eight at once."""
    found = events_of(engine, *(controlled(name) for name in CONTROLS))
    return dict(zip(CONTROLS, found, strict=True))


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_gives_the_same_answer_alone_and_among_seven_others(
    engine: Engine, together: dict[str, list[Event]], name: str
) -> None:
    """Every event of it, entropies to the last bit."""
    (alone,) = events_of(engine, controlled(name))
    assert without_times(together[name]) == without_times(alone)
    assert reason(alone) in ("stop", "length")
    without = replace(controlled(name), **{k: getattr(request(), k) for k in CONTROLS[name]})
    assert without_times(events_of(engine, without)[0]) != without_times(alone)  # it does rule something


def test_requests_without_controls_do_not_notice_neighbours_with_them(engine: Engine) -> None:
    plain = [request(prompt=tuple(range(20, 23 + i)), seed=i) for i in range(4)]
    alone = [events_of(engine, r)[0] for r in plain]
    ruled = [controlled(name) for name in ("pinned", "allowed", "min_tokens", "canvas_length")]
    mixed = [r for pair in zip(ruled, plain, strict=True) for r in pair]
    found = events_of(engine, *mixed)[1::2]
    assert [without_times(e) for e in found] == [without_times(e) for e in alone]
