"""A short soak: every condition of the long one holds, and the conditions notice what they are there for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import benchmarks.soak
from benchmarks.soak import soak
from benchmarks.soak_metrics import adds_up
from benchmarks.soak_requests import MALFORMED
from benchmarks.soak_traffic import Seen, kinds


@pytest.mark.server
@pytest.mark.slow
def test_ten_seconds_of_it(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks.soak, "SHORT", 16)  # a model that never converges takes its time for each
    monkeypatch.setattr(benchmarks.soak, "LONG", 6)
    # processes that began seconds ago still fill their caches, tritonserver its rooms for large requests
    monkeypatch.setattr(benchmarks.soak, "FLAT", 0.5)
    monkeypatch.setattr(benchmarks.soak, "SLOWER", float("inf"))  # no test measures time
    result = soak(demo_bundle, seconds=10, clients=12, picture=tmp_path / "a.png", hostile=True)
    assert result.problems == []
    assert [condition for condition, good in result.conditions.items() if not good] == []
    for phase in result.phases:
        assert set(phase.seen.kinds) == {"plain", "cancelled", "malformed", "over-long"}
        assert {"answered", "refused", "cancelled"} <= set(phase.seen.ends)
        assert all(phase.seen.took_s.values())
    alone, beside = result.phases
    assert alone.hostile is None
    assert beside.hostile is not None
    assert min(beside.hostile.counts.values()) > 0
    assert set(result.p99_ratio) == {"all", "gRPC", "OpenAI"}
    for name in ("a", "a_hostile"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def counted(**outcomes: float) -> dict[str, float]:
    names = ("stop", "length", "cancelled", "deadline", "error", "refused", "unavailable")
    return {
        "diffgemma_output_tokens_total": 100,
        **{f"diffgemma_requests_total {name}": outcomes.get(name, 0) for name in names},
    }


SEEN = Seen(
    sent=30,
    ends=Counter(answered=20, refused=6, cancelled=4),
    by_model=5,
    reasons=Counter(stop=15, length=5),
    tokens=90,
)


@pytest.mark.parametrize(
    ("outcomes", "wrong"),
    [
        ({"stop": 15, "length": 5, "refused": 5, "cancelled": 4}, []),
        ({"stop": 16, "length": 5, "refused": 5, "cancelled": 3}, []),  # one was answered as its client left
        ({"stop": 15, "length": 5, "refused": 5, "cancelled": 2}, []),  # two never came to the model
        ({"stop": 14, "length": 6, "refused": 5, "cancelled": 4}, ["metrics: each finish reason"]),
        ({"stop": 15, "length": 4, "refused": 5}, ["metrics: answered", "metrics: each finish reason"]),
        ({"stop": 16, "length": 5, "refused": 5, "cancelled": 4}, ["metrics: cancelled"]),
        ({"stop": 15, "length": 5, "refused": 6, "cancelled": 4}, ["metrics: refused"]),
        ({"stop": 15, "length": 5, "refused": 5, "unavailable": 1}, ["metrics: unavailable"]),
        ({"stop": 15, "length": 5, "refused": 5, "error": 1}, ["metrics: no errors, no deadlines"]),
        ({"stop": 15, "length": 5, "refused": 5, "deadline": 1}, ["metrics: no errors, no deadlines"]),
    ],
)
def test_what_does_not_add_up_is_named(outcomes: dict[str, float], wrong: list[str]) -> None:
    found = adds_up(SEEN, counted(**outcomes))
    assert [condition for condition, good in found.items() if not good] == wrong


def test_a_hundred_requests_are_of_the_promised_kinds() -> None:
    assert Counter(kinds()) == {"plain": 83, "cancelled": 10, "malformed": 5, "over-long": 2}
    assert set(kinds()[:30]) == set(kinds())


def test_malformed_messages_are_made_anew_each_time() -> None:
    for make in MALFORMED.values():
        assert make() == make()
        assert make() is not make()
