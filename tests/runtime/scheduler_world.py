"""A simulated worker around a scheduler: it keeps its own books and models every slot's cache."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from trtllm_build.runtime.scheduler import PATIENCE, Job, Occupancy, QueueFull, Schedule, Scheduler

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
        self.salts: dict[int, str] = {}  # of whose cache a slot last kept
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
        salt: str = "",
    ) -> int:
        """Submit a job; its key."""
        key = len(self.requests)
        job = Job(key, tuple(tokens), len(tokens) + canvases * self.canvas, priority, deadline, salt=salt)
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
                self.salts[request.slot] = request.job.salt
            else:
                del self.held[request.slot]

    def pages_of(self, job: Job) -> int:
        return (job.room + self.page - 1) // self.page

    # -- one turn of the worker

    def step(self, fault: Callable[[int], bool] = lambda key: False) -> Schedule:
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

    def check_ended(self, plan: Schedule) -> None:
        expected = set()
        for request in self.waiting + self.running:
            late = request.job.deadline is not None and request.job.deadline <= self.now
            if request.cancelled or late:
                expected.add((request.job.key, request.slot, "cancelled" if request.cancelled else "deadline"))
        assert {(e.key, e.slot, e.reason) for e in plan.ended} == expected
        assert len(plan.ended) == len(expected)
        for e in plan.ended:
            self.end(self.requests[e.key], e.reason)

    def check_admissions(self, plan: Schedule) -> None:
        evicted, self.failed = self.failed, []
        for a in plan.admitted:
            first = self.first_in_order()
            assert a.key == first.job.key
            assert self.fits(first)
            pages = self.pages_of(first.job)
            assert a.room == pages * self.page
            assert a.reused == self.longest_match(first.job)
            if a.reused:
                assert self.salts[a.slot] == first.job.salt
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

    def longest_match(self, job: Job) -> int:
        texts = [k for k in self.kept.values() if k == list(job.tokens[: len(k)]) and len(k) >= self.chunk]
        lengths = [len(k) for slot, k in self.kept.items() if k in texts and self.salts[slot] == job.salt]
        self.seen["of another salt"] += len(texts) - len(lengths)
        return max(lengths, default=0)

    def check_work(self, plan: Schedule) -> None:
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

    def carry_out(self, plan: Schedule) -> None:
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
    priority, salt = rng.choice([0, 0, 0, 1, -2]), rng.choice(["", "", "", "a"])
    return world.submit(prompt, rng.randint(1, 4), rng.randint(1, 4), priority, deadline, commits, salt)


def admitted_keys(plan: Schedule) -> list[int]:
    """Those that a plan admits, in its order."""
    return [a.key for a in plan.admitted]
