"""Who is admitted when, and who is refused."""

from __future__ import annotations

import pytest

from tests.runtime.scheduler_world import World, admitted_keys
from trtllm_build.runtime.scheduler import PATIENCE, Job, QueueFull, Scheduler


def test_equal_priority_is_first_come_first_served() -> None:
    world = World(slots=1)
    keys = [world.submit([i]) for i in range(20)]
    order = []
    while not world.scheduler.idle:
        order += admitted_keys(world.step())
    assert order == keys


def test_lower_priority_number_goes_first() -> None:
    world = World(slots=1)
    keys = [world.submit([i], priority=p) for i, p in enumerate([1, 0, 2, -1, 0])]
    order = []
    while not world.scheduler.idle:
        order += admitted_keys(world.step())
    assert order == [keys[i] for i in (3, 1, 4, 0, 2)]


@pytest.mark.parametrize("priority", [1, 3])
def test_a_low_priority_waits_for_a_bounded_number_of_others(priority: int) -> None:
    world = World(slots=1)
    low = world.submit([1], priority=priority)
    ahead = 0
    while True:
        world.submit([2])
        world.submit([3])
        admitted = admitted_keys(world.step())
        if low in admitted:
            break
        ahead += len(admitted)
        assert ahead <= priority * PATIENCE
    assert ahead == priority * PATIENCE


def test_only_later_jobs_overtake() -> None:
    """Jobs that came before do not make a job more urgent."""
    world = World(slots=1)
    for _ in range(2 * PATIENCE):
        world.submit([1])
    low = world.submit([2], priority=1)
    while world.scheduler.waiting > 1:
        world.step()
    late = world.submit([3])
    order = []
    while not world.scheduler.idle:
        order += admitted_keys(world.step())
    assert order == [late, low]


def test_nobody_passes_a_job_that_does_not_fit() -> None:
    world = World(slots=3, pages=10, page=4, canvas=4)
    running = world.submit([1] * 20, steps=50)  # 6 pages
    big = world.submit([2] * 16)  # 5
    small = world.submit([3])  # 2
    assert admitted_keys(world.step()) == [running]
    for _ in range(20):
        assert admitted_keys(world.step()) == []
    world.cancel(running)
    assert admitted_keys(world.step()) == [big, small]


def test_the_queue_is_bounded() -> None:
    world = World(slots=1, queue=3)
    for i in range(3):
        world.submit([i])
    with pytest.raises(QueueFull, match="3 requests wait already; the limit is 3"):
        world.scheduler.submit(Job(99, (1,), 8))
    world.step()  # one leaves the queue
    world.scheduler.submit(Job(99, (1,), 8))
    with pytest.raises(QueueFull):
        world.scheduler.submit(Job(100, (1,), 8))


def test_a_job_that_can_never_run_is_refused() -> None:
    scheduler = Scheduler(slots=1, pages=5, page=4, chunk=8, queue=1)
    with pytest.raises(ValueError, match="job 7: needs 6 cache pages, but there are 5"):
        scheduler.submit(Job(7, (1,), 21))
    with pytest.raises(ValueError, match="job 7: 0 prompt tokens"):
        scheduler.submit(Job(7, (), 8))
    with pytest.raises(ValueError, match="job 7: 9 prompt tokens; allowed: 1 to its room of 8"):
        scheduler.submit(Job(7, (1,) * 9, 8))
    assert scheduler.idle
    scheduler.submit(Job(7, (1,), 20))
    assert scheduler.plan(0).admitted[0].room == 20
