"""Anything that may happen to the scheduler, in any order; a thousand requests."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.runtime.scheduler_world import World, draw_request
from trtllm_build.runtime.scheduler import Job


class Machine(RuleBasedStateMachine):
    @initialize(
        slots=st.integers(1, 4),
        pages=st.integers(4, 40),
        page=st.integers(1, 5),
        chunk=st.sampled_from([1, 4, 8]),
        queue=st.integers(1, 6),
        canvas=st.sampled_from([3, 8, 11]),
    )
    def start(self, slots: int, pages: int, page: int, chunk: int, queue: int, canvas: int) -> None:
        self.world = World(slots, pages, page, chunk, queue, canvas)

    @rule(rng=st.randoms(use_true_random=False), count=st.integers(1, 3))
    def submit(self, rng: random.Random, count: int) -> None:
        for _ in range(count):
            draw_request(self.world, rng)

    @precondition(lambda self: self.world.waiting or self.world.running)
    @rule(data=st.data())
    def submit_a_key_in_use(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.world.scheduler.unfinished()))
        with pytest.raises(ValueError, match=f"job {key}: the key is in use"):
            self.world.scheduler.submit(Job(key, (1,), 1))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.world.cancel(data.draw(st.integers(-1, len(self.world.requests))))

    @precondition(lambda self: self.world.waiting or self.world.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.world.fail(data.draw(st.sampled_from(self.world.scheduler.unfinished())))

    @rule(seconds=st.integers(0, 10))
    def time_passes(self, seconds: int) -> None:
        self.world.now += seconds

    @rule(plans=st.integers(1, 12))
    def steps(self, plans: int) -> None:
        for _ in range(plans):
            self.world.step()
            self.world.check()

    @rule(rng=st.randoms(use_true_random=False))
    def step_with_faults(self, rng: random.Random) -> None:
        self.world.step(lambda key: rng.random() < 0.3)

    @rule(data=st.data())
    def report_nonsense(self, data: st.DataObject) -> None:
        """Between a worker's reports and the next plan no further report is right."""
        scheduler = self.world.scheduler
        key = data.draw(st.integers(0, len(self.world.requests)))
        ended = key not in set(scheduler.unfinished())
        denoises = [r.job.key for r in self.world.running if r.step > 0]
        report = data.draw(st.sampled_from(["encoded", "committed", "finished", "failed"]))
        if (report == "failed" and not ended) or (report in ("committed", "finished") and key in denoises):
            return
        with pytest.raises(ValueError, match=f"job {key}: "):
            getattr(scheduler, report)(key, *([(1,)] if report == "committed" else []))

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


Machine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
test_anything_in_any_order = Machine.TestCase


def test_a_thousand_requests_end_once_each() -> None:
    rng = random.Random(0)
    world = World(slots=4, pages=44, queue=20)

    def fault(key: int) -> bool:
        return rng.random() < 0.01

    while len(world.requests) < 1000:
        busy = world.now // 100 % 2  # by turns more and less than it can serve
        if rng.random() < (0.7 if busy else 0.12):
            draw_request(world, rng)
        if world.requests and rng.random() < 0.08:
            world.cancel(rng.randrange(max(0, len(world.requests) - 20), len(world.requests)))
        if world.waiting and rng.random() < 0.02:
            world.fail(rng.choice(world.waiting).job.key)
        world.now += 1
        world.step(fault)
        world.check()
    world.drain(fault)

    ends = Counter(r.ends[0] for r in world.requests if len(r.ends) == 1)
    assert sum(ends.values()) == len(world.requests) == 1000
    assert world.scheduler.running == world.scheduler.waiting == 0
    # the run met what it is meant to meet
    met = ["finished", "cancelled", "deadline", "failed", "reused", "wholly reused", "dropped", "evicted"]
    met.append("of another salt")
    assert min(world.seen[event] for event in [*met, "held back", "over budget", "queue full"]) >= 10, world.seen
