"""How requests end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.runtime.scheduler_world import World, admitted_keys, stem
from trtllm_build.runtime.scheduler import Encode, Ended, Job, Scheduler


def test_cancelled_wins_over_the_deadline_and_neither_keeps_a_cache() -> None:
    world = World(slots=2, chunk=8)
    both = world.submit(stem(0, 0, 8), deadline=5.0, steps=50)
    late = world.submit(stem(1, 0, 8), deadline=5.0, steps=50)
    waiting = world.submit(stem(0, 0, 8), deadline=5.0)
    for now in (0.0, 4.99):
        world.now = now
        assert world.step().ended == ()
    world.cancel(both)
    world.now = 5.0
    plan = world.step()
    assert set(plan.ended) == {
        Ended(both, world.slot_of(both), "cancelled"),
        Ended(late, world.slot_of(late), "deadline"),
        Ended(waiting, None, "deadline"),
    }
    assert plan.evicted == ()
    assert world.scheduler.idle
    assert world.scheduler.free_pages == world.pages
    world.submit(stem(0, 0, 8))
    assert world.step().admitted[0].reused == 0


def test_a_slot_that_is_freed_is_filled_in_the_same_plan() -> None:
    world = World(slots=1)
    first, second = world.submit([1], steps=9), world.submit([2])
    world.step()
    world.cancel(first)
    assert admitted_keys(world.step()) == [second]


def test_the_cache_of_a_failed_job_is_released_once_and_not_kept() -> None:
    world = World(slots=1, chunk=8)
    key = world.submit(stem(0, 0, 8), steps=9)
    world.step()
    world.fail(key)
    assert world.scheduler.free_pages == world.pages
    again = world.submit(stem(0, 0, 8))
    plan = world.step()
    assert plan.evicted == (world.slot_of(key),)
    assert (plan.admitted[0].key, plan.admitted[0].reused) == (again, 0)
    assert world.step().evicted == ()


def test_a_key_is_used_once_at_a_time() -> None:
    world = World(slots=1)
    running, waiting = world.submit([1], steps=9), world.submit([2])
    world.step()
    for key in (running, waiting):
        with pytest.raises(ValueError, match=f"job {key}: the key is in use"):
            world.scheduler.submit(Job(key, (1,), 8))


def test_a_key_may_come_back_and_its_old_cancellation_does_not() -> None:
    scheduler = Scheduler(slots=1, pages=8, page=4, chunk=8, queue=2)
    scheduler.submit(Job(1, (5,), 8))
    scheduler.plan(0)
    scheduler.encoded(1)
    assert scheduler.plan(0).denoise == ((1, 0),)
    scheduler.cancel(1)
    scheduler.finished(1)
    scheduler.cancel(1)  # ended: ignored
    scheduler.submit(Job(1, (5,), 8))
    plan = scheduler.plan(0)
    assert plan.ended == ()
    assert admitted_keys(plan) == [1]


def test_reports_that_contradict_the_state_are_refused() -> None:
    scheduler = Scheduler(slots=1, pages=8, page=4, chunk=4, queue=2)
    reports: dict[str, Callable[[], None]] = {
        "encoded": lambda: scheduler.encoded(7),
        "committed": lambda: scheduler.committed(7, (1, 2)),
        "finished": lambda: scheduler.finished(7),
        "failed": lambda: scheduler.failed(7),
    }

    def refused(*names: str) -> None:
        for name in names:
            with pytest.raises(ValueError, match=f"job 7: reported as {name}"):
                reports[name]()

    refused("encoded", "committed", "finished", "failed")  # unknown
    scheduler.submit(Job(7, (1, 2, 3, 4, 5), 12))
    refused("encoded", "committed", "finished")  # waits
    scheduler.plan(0)
    refused("committed", "finished")  # its prompt is pending
    scheduler.encoded(7)
    refused("encoded", "committed", "finished")  # twice
    assert scheduler.plan(0).encode == (Encode(7, 0, 4, (5,)),)
    assert scheduler.plan(0).encode == (Encode(7, 0, 4, (5,)),), "not reported, so it comes again"
    scheduler.encoded(7)
    refused("encoded", "committed", "finished")  # nothing is pending, but it was not denoised either
    scheduler.plan(0)
    refused("encoded")
    with pytest.raises(ValueError, match="job 7: 8 tokens after 5 exceed its room of 12"):
        scheduler.committed(7, range(8))
    scheduler.committed(7, (6, 7))
    refused("encoded", "committed", "finished")  # tokens are pending
    scheduler.plan(0)
    scheduler.encoded(7)
    scheduler.plan(0)
    scheduler.finished(7)
    refused("encoded", "committed", "finished", "failed")  # ended
    scheduler.submit(Job(7, (1,), 4))
    scheduler.failed(7)
    refused("encoded", "committed", "finished", "failed")  # ended while it waited
    assert scheduler.idle


def test_a_piece_of_an_earlier_plan_is_not_reported() -> None:
    scheduler = Scheduler(slots=2, pages=20, page=4, chunk=4, queue=2)
    for key in (1, 2):
        scheduler.submit(Job(key, (key,), 20))
    scheduler.plan(0)
    scheduler.encoded(1)
    scheduler.encoded(2)
    scheduler.plan(0)
    scheduler.committed(2, (1, 2, 3, 4))
    assert [e.key for e in scheduler.plan(0).encode] == [2]
    scheduler.committed(1, (5,))
    assert [e.key for e in scheduler.plan(0).encode] == [1]  # the piece of 2 was not reported; now it does not fit
    with pytest.raises(ValueError, match="job 2: reported as encoded"):
        scheduler.encoded(2)
