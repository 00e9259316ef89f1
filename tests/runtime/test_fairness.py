"""Clients take turns: one that sends much slows down itself, not the others."""

from __future__ import annotations

from collections import Counter

import pytest

from trtllm_build.runtime.scheduler import PATIENCE, Ended, Job, QueueFull, Scheduler


def scheduler(slots: int = 1, queue: int = 100) -> Scheduler:
    return Scheduler(slots, pages=1000, page=4, chunk=8, queue=queue)


def submit(s: Scheduler, key: int, client: str, priority: int = 0) -> None:
    s.submit(Job(key, (key,), 8, priority, client=client))


def finish_next(s: Scheduler) -> list[int]:
    """Run one plan after the other until canvases are denoised; finish them all."""
    while not (plan := s.plan(0.0)).denoise:
        for piece in plan.encode:
            s.encoded(piece.key)
    keys = [key for key, _ in plan.denoise]
    for key in keys:
        s.finished(key)
    return keys


def test_a_client_that_comes_late_does_not_wait_behind_all_of_another() -> None:
    s = scheduler()
    for key in range(50):
        submit(s, key, "flood")
    assert finish_next(s) == [0]
    submit(s, 50, "late")
    submit(s, 51, "late")
    assert [finish_next(s) for _ in range(4)] == [[50], [1], [51], [2]]


def test_turns_go_on_when_one_client_sends_one_request_at_a_time() -> None:
    s = scheduler(queue=1000)
    for key in range(10 * PATIENCE):
        submit(s, key, "flood")
    last = 10 * PATIENCE
    submit(s, last, "polite")
    served = Counter()
    for _ in range(6 * PATIENCE):
        (key,) = finish_next(s)
        served["polite" if key >= 10 * PATIENCE else "flood"] += 1
        if key == last:
            last += 1
            submit(s, last, "polite")
    assert abs(served["polite"] - served["flood"]) <= 1


def test_slots_are_shared_out_evenly() -> None:
    s = scheduler(slots=4)
    for key in range(8):
        submit(s, key, "a")
    submit(s, 8, "b")
    submit(s, 9, "b")
    plan = s.plan(0.0)
    assert {a.key for a in plan.admitted} == {0, 1, 8, 9}


def test_priority_goes_before_turns() -> None:
    s = scheduler()
    submit(s, 0, "a", priority=1)
    submit(s, 1, "b", priority=0)
    submit(s, 2, "b", priority=0)
    assert [finish_next(s) for _ in range(3)] == [[1], [2], [0]]


def test_in_a_full_queue_the_one_who_waits_with_most_gives_way() -> None:
    s = scheduler(queue=4)
    for key in range(4):
        submit(s, key, "flood", priority=int(key == 1))
    submit(s, 4, "other")  # in place of 1, which would have gone last
    assert s.waiting == 4
    submit(s, 5, "other")  # in place of 3, which came last
    with pytest.raises(QueueFull, match="4 requests wait already; the limit is 4"):
        submit(s, 6, "other")  # two of each wait
    assert set(s.unfinished()) == {0, 1, 2, 3, 4, 5}
    assert s.plan(0.0).ended == (Ended(1, None, "displaced"), Ended(3, None, "displaced"))
    assert set(s.unfinished()) == {0, 2, 4, 5}


def test_a_client_alone_fills_the_queue() -> None:
    s = scheduler(queue=4)
    for key in range(4):
        submit(s, key, "one")
    with pytest.raises(QueueFull):
        submit(s, 4, "one")
    assert s.plan(0.0).ended == ()


def test_what_is_displaced_still_has_to_be_told() -> None:
    s = scheduler(queue=2)
    submit(s, 0, "a")
    submit(s, 1, "a")
    submit(s, 2, "b")
    s.cancel(0)
    s.cancel(2)
    assert not s.idle
    assert {(e.key, e.reason) for e in s.plan(0.0).ended} == {(1, "displaced"), (0, "cancelled"), (2, "cancelled")}
    assert s.idle
