"""The scheduler against a simulated worker that keeps its own books and models every slot's cache."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trtllm_build.runtime.scheduler import PATIENCE, Encode, Ended, Job, Occupancy, Plan, QueueFull, Scheduler

Ids = tuple[int, ...]


@dataclass(eq=False)
class Request:
    """What the simulated worker knows of a job: ``steps`` a canvas, ``canvases`` until it is done."""

    job: Job
    number: int  # order of submission
    canvases: int
    steps: int
    commits: Sequence[int]  # endless enough: committed tokens are taken from here
    text: list[int] = field(default_factory=list)  # prompt and committed canvases
    cached: int = 0
    step: int = 0
    canvas: int = 0
    slot: int | None = None
    overtaken: int = 0
    cancelled: bool = False
    ends: list[str] = field(default_factory=list)
    pieces: list[tuple[int, int]] = field(default_factory=list)


class World:
    """A worker around a scheduler. Checks every plan against plain restatements of the rules."""

    def __init__(
        self, slots: int = 2, pages: int = 100, page: int = 4, chunk: int = 8, queue: int = 100, canvas: int = 6
    ):
        self.scheduler = Scheduler(slots, pages, page, chunk, queue)
        self.slots, self.pages, self.page, self.chunk, self.queue, self.canvas = (
            slots,
            pages,
            page,
            chunk,
            queue,
            canvas,
        )
        self.now = 0.0
        self.requests: list[Request] = []
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        # books: who holds which pages, by the rules
        self.held: dict[int, int] = {}
        self.kept: dict[int, list[int]] = {}  # the least recently finished first
        self.failed: list[int] = []
        # machine: what the plans made of the caches
        self.cache: dict[int, list[int]] = {}
        self.reserved: dict[int, int] = {}
        self.worked: set[int] = set()  # keys that the last plan encodes or denoises
        self.seen: Counter[str] = Counter()

    # -- what callers do

    def submit(
        self,
        tokens: Sequence[int],
        canvases: int = 1,
        steps: int = 1,
        priority: int = 0,
        deadline: float | None = None,
        commits: Sequence[int] = range(1000, 2000),
    ) -> int:
        """Submit a job; its key."""
        key = len(self.requests)
        job = Job(key, tuple(tokens), len(tokens) + canvases * self.canvas, priority, deadline)
        if self.pages_of(job) > self.pages:
            with pytest.raises(ValueError, match=f"job {key}: needs {self.pages_of(job)} .* there are {self.pages}"):
                self.scheduler.submit(job)
            self.seen["too large"] += 1
            return -1
        if len(self.waiting) == self.queue:
            with pytest.raises(QueueFull, match=f"{self.queue} .* limit is {self.queue}"):
                self.scheduler.submit(job)
            self.seen["queue full"] += 1
            return -1
        self.scheduler.submit(job)
        request = Request(job, key, canvases, steps, commits, list(tokens))
        self.requests.append(request)
        self.waiting.append(request)
        return key

    def cancel(self, key: int) -> None:
        self.scheduler.cancel(key)
        if 0 <= key < len(self.requests):
            self.requests[key].cancelled = True

    def fail(self, key: int) -> None:
        self.scheduler.failed(key)
        request = self.requests[key]
        if request.slot is not None:
            self.failed.append(request.slot)
        self.end(request, "failed")

    def end(self, request: Request, how: str, keep: bool = False) -> None:
        request.ends.append(how)
        self.seen[how] += 1
        (self.waiting if request.slot is None else self.running).remove(request)
        if request.slot is not None:
            if keep:
                self.kept[request.slot] = list(request.text)
            else:
                del self.held[request.slot]

    def pages_of(self, job: Job) -> int:
        return (job.room + self.page - 1) // self.page

    # -- one turn of the worker

    def step(self, fault: Callable[[int], bool] = lambda key: False) -> Plan:
        """Take a plan, check it, carry it out and report; ``fault(key)``: its work fails."""
        plan = self.scheduler.plan(self.now)
        self.worked = {piece.key for piece in plan.encode} | {key for key, _ in plan.denoise}
        self.check_ended(plan)
        self.check_admissions(plan)
        self.check_work(plan)
        self.carry_out(plan)
        for piece in plan.encode:
            if fault(piece.key):
                self.fail(piece.key)
            else:
                self.scheduler.encoded(piece.key)
                self.requests[piece.key].cached += len(piece.tokens)
        for key, _ in plan.denoise:
            if fault(key):
                self.fail(key)
            else:
                self.denoised(self.requests[key])
        return plan

    def denoised(self, request: Request) -> None:
        request.step += 1
        if request.step < request.steps:
            return
        request.step = 0
        request.canvas += 1
        key = request.job.key
        if request.canvas == request.canvases:
            self.scheduler.finished(key)
            self.end(request, "finished", keep=True)
            return
        at = (request.canvas - 1) * self.canvas
        tokens = request.commits[at : at + self.canvas]
        self.scheduler.committed(key, tokens)
        request.text += tokens

    def check_ended(self, plan: Plan) -> None:
        expected = set()
        for request in self.waiting + self.running:
            late = request.job.deadline is not None and request.job.deadline <= self.now
            if request.cancelled or late:
                expected.add((request.job.key, request.slot, "cancelled" if request.cancelled else "deadline"))
        assert {(e.key, e.slot, e.reason) for e in plan.ended} == expected
        assert len(plan.ended) == len(expected)
        for e in plan.ended:
            self.end(self.requests[e.key], e.reason)

    def check_admissions(self, plan: Plan) -> None:
        evicted, self.failed = self.failed, []
        for a in plan.admitted:
            first = self.first_in_order()
            assert a.key == first.job.key
            assert self.fits(first)
            pages = self.pages_of(first.job)
            assert a.room == pages * self.page
            assert a.reused == self.longest_match(first.job.tokens)
            if a.reused:
                assert self.kept[a.slot] == list(first.job.tokens[: a.reused])
                self.seen["reused"] += 1
                self.seen["wholly reused"] += a.reused == len(first.job.tokens)
            elif len(self.held) < self.slots:
                assert a.slot not in self.held
            else:
                assert a.slot == next(iter(self.kept))
                self.seen["dropped"] += 1
            self.kept.pop(a.slot, None)
            self.held.pop(a.slot, None)
            while sum(self.held.values()) + pages > self.pages:
                slot = next(iter(self.kept))
                del self.kept[slot], self.held[slot]
                evicted.append(slot)
                self.seen["evicted"] += 1
            for other in self.waiting:
                other.overtaken += other.number < first.number
            self.waiting.remove(first)
            self.running.append(first)
            first.slot, first.cached = a.slot, a.reused
            self.held[a.slot] = pages
        assert plan.evicted == tuple(evicted)
        if self.waiting:
            assert not self.fits(self.first_in_order())
            self.seen["held back"] += any(self.fits(r) for r in self.waiting)

    def first_in_order(self) -> Request:
        return min(self.waiting, key=lambda r: (r.job.priority - r.overtaken // PATIENCE, r.number))

    def fits(self, request: Request) -> bool:
        running = sum(self.held[r.slot] for r in self.running if r.slot is not None)
        return len(self.running) < self.slots and running + self.pages_of(request.job) <= self.pages

    def longest_match(self, tokens: Ids) -> int:
        lengths = [len(k) for k in self.kept.values() if k == list(tokens[: len(k)])]
        return max((n for n in lengths if n >= self.chunk), default=0)

    def check_work(self, plan: Plan) -> None:
        pending = [r for r in self.running if r.cached < len(r.text)]
        commits = [r for r in pending if r.cached >= len(r.job.tokens)]
        prompts = [r for r in pending if r.cached < len(r.job.tokens)]
        expected = [*self.within_budget(commits), *self.within_budget(prompts)]
        assert [(e.key, e.slot, e.start) for e in plan.encode] == [(r.job.key, r.slot, r.cached) for r in expected]
        assert [len(e.tokens) for e in plan.encode] == [self.piece_size(r) for r in expected]
        assert len(expected) > 0 or not pending
        self.seen["over budget"] += len(expected) < len(pending)
        for e in plan.encode:
            end = e.start + len(e.tokens)
            self.requests[e.key].pieces.append((e.start, end))
            assert end == len(self.requests[e.key].text) or end % self.chunk == 0
        assert plan.denoise == tuple((r.job.key, r.slot) for r in self.running if r not in pending)
        assert bool(plan.encode or plan.denoise) == bool(self.running), "a plan without work would spin"
        assert self.running or not self.waiting, "nobody is left to make room"

    def within_budget(self, requests: list[Request]) -> list[Request]:
        """The first of them whose pieces together are at most a chunk."""
        count = 0
        while count < len(requests) and sum(self.piece_size(r) for r in requests[: count + 1]) <= self.chunk:
            count += 1
        return requests[:count]

    def piece_size(self, request: Request) -> int:
        rest = len(request.text) - request.cached
        boundary = (request.cached // self.chunk + 1) * self.chunk
        return rest if rest <= self.chunk else boundary - request.cached

    def carry_out(self, plan: Plan) -> None:
        """On the caches, in the plan's order and with nothing but the plan."""
        for slot in [e.slot for e in plan.ended if e.slot is not None] + list(plan.evicted):
            del self.cache[slot], self.reserved[slot]
        for a in plan.admitted:
            if a.reused == 0:
                self.cache[a.slot] = []
            assert len(self.cache[a.slot]) == a.reused
            self.reserved[a.slot] = a.room
            assert sum(self.reserved.values()) <= self.pages * self.page
        for piece in plan.encode:
            cache = self.cache[piece.slot]
            assert piece.start == len(cache)
            cache.extend(piece.tokens)
            assert cache == self.requests[piece.key].text[: len(cache)]
            assert len(cache) <= self.requests[piece.key].job.room <= self.reserved[piece.slot]
        for key, slot in plan.denoise:
            assert self.cache[slot] == self.requests[key].text
            assert len(self.cache[slot]) + self.canvas <= self.requests[key].job.room
        for slot, kept in self.kept.items():
            assert self.cache[slot] == kept

    # -- what holds between plans

    def check(self) -> None:
        assert self.scheduler.waiting == len(self.waiting) <= self.queue
        assert self.scheduler.running == len(self.running) <= self.slots
        assert self.scheduler.idle == (not self.waiting and not self.running)
        assert self.scheduler.free_pages == self.pages - sum(self.held.values()) >= 0
        running = {r.job.key for r in self.running}
        assert self.scheduler.occupancy() == Occupancy(
            waiting=len(self.waiting),
            running=len(self.running),
            prefilling=sum(r.cached < len(r.job.tokens) for r in self.running),
            scheduled=len(self.worked & running),
            slots=self.slots,
            used_pages=sum(self.pages_of(r.job) for r in self.running),
            pages=self.pages,
            page_tokens=self.page,
        )
        open_keys = {r.job.key for r in self.waiting + self.running}
        assert sorted(self.scheduler.unfinished()) == sorted(open_keys)
        slots = [r.slot for r in self.running]
        assert len(set(slots)) == len(slots)
        assert not set(slots) & set(self.kept)
        assert set(slots) | set(self.kept) == set(self.held) <= set(range(self.slots))
        for request in self.requests:
            assert len(request.ends) == (request.job.key not in open_keys)

    def drain(self, fault: Callable[[int], bool] = lambda key: False) -> None:
        """Until all jobs end: every plan does a piece or a step of some job, so the sum of these bounds the plans."""
        bound = 1
        for r in self.waiting + self.running:
            bound += len(r.job.tokens) // self.chunk + 1 + r.canvases * (r.steps + self.canvas // self.chunk + 2)
        while not self.scheduler.idle:
            bound -= 1
            assert bound >= 0, "a job does not end"
            self.step(fault)
            self.check()
        assert all(len(r.ends) == 1 for r in self.requests)
        self.step()  # releases what failed last
        assert set(self.cache) == set(self.reserved) == set(self.kept) == set(self.held)
        assert sum(self.held.values()) + self.scheduler.free_pages == self.pages

    def slot_of(self, key: int) -> int | None:
        return self.requests[key].slot

    def run_alone(self, tokens: Sequence[int], canvases: int = 1, commits: Sequence[int] = range(1000, 2000)) -> int:
        key = self.submit(tokens, canvases, commits=commits)
        self.drain()
        return key


def stem(number: int, start: int, stop: int) -> Ids:
    """Part of one of a few endless texts, so that prompts, caches and commits often continue each other."""
    return tuple(10 * number + i % 7 for i in range(start, stop))


def draw_request(world: World, rng: random.Random) -> int:
    """Submit something random that is likely to continue, repeat or almost match what ran before."""
    length, number = rng.randint(1, 5 * world.chunk), rng.randint(0, 2)
    prompt = stem(number, 0, length)
    if rng.random() < 0.2:
        prompt = (*prompt[:-1], 99)
    if world.kept and rng.random() < 0.4:  # a conversation that goes on, or the same prompt again
        prompt = (*rng.choice(list(world.kept.values())), *stem(number, 0, rng.choice([0, 0, 1, 3])))
    away = rng.random() < 0.3
    commits = stem(number + 5 * away, length, length + 5 * world.canvas)
    deadline = world.now + rng.randint(0, 40) if rng.random() < 0.15 else None
    return world.submit(prompt, rng.randint(1, 4), rng.randint(1, 4), rng.choice([0, 0, 0, 1, -2]), deadline, commits)


# -- anything that may happen, in any order


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
    assert min(world.seen[event] for event in [*met, "held back", "over budget", "queue full"]) >= 10, world.seen


# -- order of admission


def admitted_keys(plan: Plan) -> list[int]:
    return [a.key for a in plan.admitted]


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


# -- reuse


def test_a_conversation_goes_on_from_its_cache() -> None:
    world = World(chunk=8, canvas=6)
    prompt, answer = stem(0, 0, 10), stem(1, 0, 6)
    first = world.run_alone(prompt, canvases=2, commits=answer)
    second = world.submit((*prompt, *answer, 7, 8))
    plan = world.step()
    assert (plan.admitted[0].slot, plan.admitted[0].reused) == (world.slot_of(first), 16)
    assert plan.encode == (Encode(second, plan.admitted[0].slot, 16, (7, 8)),)


def test_a_prompt_that_is_wholly_in_the_cache_denoises_at_once() -> None:
    world = World(chunk=8)
    first = world.run_alone(stem(0, 0, 10))
    second = world.submit(stem(0, 0, 10))
    plan = world.step()
    assert plan.admitted[0].reused == 10
    assert plan.encode == ()
    assert plan.denoise == ((second, world.slot_of(first)),)


@pytest.mark.parametrize(("length", "reused"), [(7, 0), (8, 8)])
def test_nothing_shorter_than_a_chunk_is_reused(length: int, reused: int) -> None:
    world = World(chunk=8)
    world.run_alone(stem(0, 0, length))
    world.submit(stem(0, 0, 20))
    assert world.step().admitted[0].reused == reused


def test_part_of_a_cache_is_not_reused() -> None:
    world = World(chunk=8)
    world.run_alone(stem(0, 0, 20))
    world.submit(stem(0, 0, 19))
    assert world.step().admitted[0].reused == 0


@pytest.mark.parametrize("lengths", [(9, 12, 10), (12, 10, 9), (9, 10, 12)])
def test_the_longest_prefix_wins(lengths: tuple[int, ...]) -> None:
    world = World(slots=4, chunk=8)
    keys = [world.submit(stem(0, 0, n), steps=40) for n in lengths]  # at the same time, so that none reuses another
    world.drain()
    world.submit(stem(0, 0, 20))
    plan = world.step()
    assert plan.admitted[0].reused == 12
    assert plan.admitted[0].slot == world.slot_of(keys[lengths.index(12)])


def test_a_match_is_taken_before_an_empty_slot_and_an_empty_slot_before_a_kept_one() -> None:
    world = World(slots=3, chunk=8)
    first = world.run_alone(stem(0, 0, 8))
    other, same = world.submit(stem(1, 0, 8)), world.submit(stem(0, 0, 9))
    plan = world.step()
    slots = {a.key: (a.slot, a.reused) for a in plan.admitted}
    assert slots[other][0] != world.slot_of(first)
    assert slots[same] == (world.slot_of(first), 8)
    assert plan.evicted == ()


def test_without_an_empty_slot_the_least_recently_finished_is_dropped() -> None:
    world = World(slots=3)
    slow, quick, middle = (world.submit([i], steps=n) for i, n in enumerate((9, 1, 5)))
    world.drain()
    for expected in (quick, middle, slow):
        key = world.submit([9], steps=50)
        plan = world.step()
        assert (plan.admitted[0].slot, plan.admitted[0].reused) == (world.slot_of(expected), 0)
        assert world.slot_of(key) == world.slot_of(expected)
        assert plan.evicted == ()  # the admission itself drops it


def test_caches_are_evicted_for_pages_least_recently_finished_first() -> None:
    world = World(slots=4, pages=12, page=4, chunk=8, canvas=4)
    slow, quick, middle = (world.submit(stem(i, 0, 12), steps=n) for i, n in enumerate((30, 1, 15)))  # 4 pages each
    world.drain()
    assert world.scheduler.free_pages == 0
    world.submit([9] * 20)  # 6 pages: two of the caches go
    plan = world.step()
    assert plan.evicted == (world.slot_of(quick), world.slot_of(middle))
    assert world.scheduler.free_pages == 2
    world.drain()
    world.submit(stem(0, 0, 12))
    assert world.step().admitted[0].slot == world.slot_of(slow)


def test_the_reused_cache_is_not_evicted_for_its_own_job() -> None:
    world = World(slots=2, pages=12, page=4, chunk=8, canvas=4)
    old = world.run_alone(stem(0, 0, 20))  # 6 pages, the first to be evicted
    new = world.run_alone(stem(1, 0, 20))  # 6 pages
    world.submit(stem(0, 0, 36))  # 10 pages: its own 6 and 4 of the other's
    plan = world.step()
    assert (plan.admitted[0].slot, plan.admitted[0].reused) == (world.slot_of(old), 20)
    assert plan.evicted == (world.slot_of(new),)
    assert world.scheduler.free_pages == 2


def test_what_is_not_admitted_evicts_nothing() -> None:
    world = World(slots=3, pages=12, page=4, chunk=8, canvas=4)
    world.run_alone(stem(0, 0, 12))  # 4 pages kept
    world.submit(stem(1, 0, 12), steps=50)  # 4 running
    world.step()
    world.submit([9] * 32)  # 9 do not fit
    plan = world.step()
    assert plan.admitted == ()
    assert plan.evicted == ()
    assert list(world.kept.values()) == [list(stem(0, 0, 12))]


# -- pieces


def test_what_a_request_is_cut_into_depends_on_nothing_else() -> None:
    def pieces(others: int) -> list[tuple[int, int]]:
        world = World(slots=8, pages=1000, chunk=8, canvas=6)
        for i in range(others):
            world.submit(stem(i + 1, 0, 3 + 5 * i), canvases=3, steps=2)
        key = world.submit(stem(0, 0, 29), canvases=3)
        world.drain()
        return world.requests[key].pieces

    assert pieces(0) == pieces(3) == pieces(7) == [(0, 8), (8, 16), (16, 24), (24, 29), (29, 35), (35, 41)]


def test_a_rest_after_reuse_is_cut_at_multiples_of_the_chunk() -> None:
    world = World(chunk=8)
    world.run_alone(stem(0, 0, 11))
    key = world.run_alone(stem(0, 0, 30))
    assert world.requests[key].pieces == [(11, 16), (16, 24), (24, 30)]


def test_a_canvas_longer_than_a_chunk_is_cut_too() -> None:
    world = World(chunk=8, canvas=11)
    key = world.run_alone(stem(0, 0, 3), canvases=2)
    assert world.requests[key].pieces == [(0, 3), (3, 8), (8, 14)]


def test_commits_go_before_prompts_and_do_not_hold_them_up() -> None:
    world = World(chunk=8, canvas=5)
    world.run_alone(stem(1, 0, 8))
    long, again = world.submit(stem(0, 0, 24)), world.submit(stem(1, 0, 8), canvases=2)
    plan = world.step()
    assert [e.key for e in plan.encode] == [long]
    assert [key for key, _ in plan.denoise] == [again]
    assert [(e.key, len(e.tokens)) for e in world.step().encode] == [(again, 5), (long, 8)]
    assert [(e.key, e.start) for e in world.step().encode] == [(long, 16)]


def test_pieces_share_the_budget_and_none_passes_one_that_does_not_fit() -> None:
    world = World(slots=5, chunk=8)
    sizes = (2, 6, 1, 9, 1)
    keys = [world.submit(stem(i, 0, n)) for i, n in enumerate(sizes)]
    pieces = [[(keys.index(e.key), len(e.tokens)) for e in world.step().encode] for _ in range(4)]
    assert pieces == [[(0, 2), (1, 6)], [(2, 1)], [(3, 8)], [(3, 1), (4, 1)]]


def test_a_long_prompt_does_not_stop_running_canvases() -> None:
    world = World(slots=2, chunk=8)
    running = world.submit([1], steps=20)
    world.step()
    world.submit(stem(0, 0, 80))
    for _ in range(10):
        plan = world.step()
        assert [len(e.tokens) for e in plan.encode] == [8]
        assert [key for key, _ in plan.denoise] == [running]


# -- ends


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
