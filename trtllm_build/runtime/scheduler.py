"""When which request does what: a pure state machine, without tensors, threads or clock.

The worker asks for a :class:`Schedule`, carries it out, reports what came of it, and asks for the next one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# a waiting job goes up by one priority for every so many later jobs admitted ahead of it, so that nothing starves
PATIENCE = 16


@dataclass(frozen=True)
class Job:
    """One request, as far as its turn depends on it.

    Args:
        key: unique handle, greater than those submitted before.
        tokens: prompt token ids, at least one.
        room: most tokens its cache will ever hold at once: prompt, committed canvases and the running canvas.
        priority: lower goes first.
        deadline: when it ends unfinished, in seconds on the clock of :meth:`Scheduler.plan`; None for never.
        client: whose it is; clients take turns.
        salt: only a cache of a job with the same one is reused.
        reads: nothing will be written behind its tokens. Only the whole cache of another such job with the very same
            tokens is reused, which was encoded in the same pieces: its results are the same to the last bit.
    """

    key: int
    tokens: tuple[int, ...]
    room: int
    priority: int = 0
    deadline: float | None = None
    client: str = ""
    salt: str = ""
    reads: bool = False


@dataclass(frozen=True)
class Admission:
    """A job gets a slot.

    Args:
        key: the job.
        slot: its slot until it ends.
        reused: tokens of the slot's cache that it keeps, which is all of them; 0: drop the slot's cache first.
        room: tokens to reserve for it, in whole pages, in place of what the slot had reserved.
    """

    key: int
    slot: int
    reused: int
    room: int


@dataclass(frozen=True)
class Encode:
    """Token ids ``tokens`` go into the cache of ``slot``, the first at absolute position ``start``."""

    key: int
    slot: int
    start: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Ended:
    """A job that ends unfinished. The cache of ``slot`` is to be released; None when the job never had one.

    ``displaced``: the queue was full and its client had more than its share of it.
    """

    key: int
    slot: int | None
    reason: Literal["cancelled", "deadline", "displaced"]


@dataclass(frozen=True)
class Schedule:
    """What to do next, in the order of the fields.

    Args:
        ended: jobs that ended; each releases its slot's cache.
        evicted: other slots whose cache is to be released: kept ones whose pages are needed, and those of jobs that
            failed. Such a slot may be admitted to again in the same plan.
        admitted: jobs that get a slot.
        encode: tokens to encode, at most one piece a job.
        denoise: ``(key, slot)`` of every canvas to denoise by one step.
    """

    ended: tuple[Ended, ...]
    evicted: tuple[int, ...]
    admitted: tuple[Admission, ...]
    encode: tuple[Encode, ...]
    denoise: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Occupancy:
    """Who waits and runs, and what the cache holds.

    Args:
        waiting: jobs without a slot.
        running: jobs with one.
        prefilling: of them, those whose prompt is not in the cache yet.
        scheduled: of them, those that the last plan encodes or denoises.
        slots: most jobs that run at once.
        used_pages: pages that running jobs hold.
        pages: all of them; those of finished jobs give way, so what is not used is free.
        page_tokens: tokens per page.
    """

    waiting: int
    running: int
    prefilling: int
    scheduled: int
    slots: int
    used_pages: int
    pages: int
    page_tokens: int


class QueueFull(RuntimeError):
    """As many jobs wait as may wait."""


@dataclass
class _Waiting:
    job: Job
    overtaken: int = 0
    cancelled: bool = False

    @property
    def priority(self) -> int:
        return self.job.priority - self.overtaken // PATIENCE


@dataclass
class _Running:
    job: Job
    slot: int
    pages: int
    tokens: list[int]  # prompt and committed canvases
    cached: int  # how many of them are encoded
    planned: int = 0  # how many of them the last plan encodes
    denoises: bool = False  # in the last plan, with nothing reported since
    scheduled: bool = False  # in the last plan, whatever was reported since
    cancelled: bool = False

    @property
    def prefilling(self) -> bool:
        return self.cached < len(self.job.tokens)


class Scheduler:
    """Decides who is admitted to which slot, what is encoded and what is denoised.

    Every job ends exactly once: in :attr:`Schedule.ended`, by :meth:`finished` or by :meth:`failed`. The cache of a
    finished job is kept, with its slot and pages, until either is needed; the least recently finished goes first.

    Args:
        slots: most jobs that run at once.
        pages: cache pages, of all slots together.
        page: tokens per page.
        chunk: most tokens of committed canvases, and most tokens of prompts, encoded in one plan, so that a long prompt
            does not hold up running canvases.
        queue: most jobs that wait.
    """

    def __init__(self, slots: int, pages: int, page: int, chunk: int, queue: int):
        self._slots = slots
        self._pages = pages
        self._page = page
        self._chunk = chunk
        self._queue = queue
        self._waiting: dict[int, _Waiting] = {}  # in order of submission
        self._running: dict[int, _Running] = {}  # in order of admission
        self._kept: dict[int, _Running] = {}  # finished jobs by slot, the least recently finished first
        self._empty = set(range(slots))
        self._released: list[int] = []  # for the next plan's ``evicted``
        self._displaced: list[int] = []  # for the next plan's ``ended``
        self._turns: dict[str, int] = {}  # when a client that waits or runs was last admitted
        self._turn = 0

    # -- what callers ask -------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Queue a job. In a full queue the last job of the client that has most there gives way to a client that has
        at least two fewer.

        Raises:
            QueueFull: when as many jobs wait as may wait and none gives way.
            ValueError: when the key is in use, when there are no tokens or more than ``room``, or when ``room`` needs
                more pages than there are.
        """
        if job.key in self._waiting or job.key in self._running:
            raise ValueError(f"job {job.key}: the key is in use")
        if not 1 <= len(job.tokens) <= job.room:
            raise ValueError(f"job {job.key}: {len(job.tokens)} prompt tokens; allowed: 1 to its room of {job.room}")
        if self._pages_for(job) > self._pages:
            raise ValueError(f"job {job.key}: needs {self._pages_for(job)} cache pages, but there are {self._pages}")
        if len(self._waiting) >= self._queue and not self._displace(job.client):
            raise QueueFull(f"{len(self._waiting)} requests wait already; the limit is {self._queue}")
        self._waiting[job.key] = _Waiting(job)

    def _displace(self, client: str) -> bool:
        waiting = Counter(w.job.client for w in self._waiting.values())
        most = max(waiting, key=waiting.__getitem__, default=client)
        if waiting[most] < waiting[client] + 2:
            return False
        # of those that go last, the one that came last
        keys = reversed([key for key, w in self._waiting.items() if w.job.client == most])
        last = max(keys, key=lambda key: self._waiting[key].priority)
        del self._waiting[last]
        self._displaced.append(last)
        return True

    def cancel(self, key: int) -> None:
        """End a job in the next plan, unless it ends before. A key that is unknown or ended is ignored."""
        entry = self._waiting.get(key) or self._running.get(key)
        if entry is not None:
            entry.cancelled = True

    @property
    def waiting(self) -> int:
        """Jobs submitted and not yet admitted."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that have a slot."""
        return len(self._running)

    @property
    def idle(self) -> bool:
        """Nothing waits or runs. Else the next plan has something to do: what waits alone is always admitted."""
        return not self._waiting and not self._running and not self._displaced

    @property
    def free_pages(self) -> int:
        """Pages that neither a running job nor a kept cache holds."""
        return self._pages - sum(r.pages for r in [*self._running.values(), *self._kept.values()])

    def occupancy(self) -> Occupancy:
        """Who waits and runs, and what the cache holds, now."""
        running = self._running.values()
        return Occupancy(
            waiting=self.waiting,
            running=self.running,
            prefilling=sum(r.prefilling for r in running),
            scheduled=sum(r.scheduled for r in running),
            slots=self._slots,
            used_pages=sum(r.pages for r in running),
            pages=self._pages,
            page_tokens=self._page,
        )

    def unfinished(self) -> tuple[int, ...]:
        """All jobs that have not ended."""
        return (*self._waiting, *self._running, *self._displaced)

    # -- the plan ---------------------------------------------------------------------

    def plan(self, now: float) -> Schedule:
        """What to do next; ``now`` in seconds.

        After carrying it out, and before the next plan, report on each of its pieces of work: :meth:`encoded` for each
        of ``encode`` (without it the same piece comes again), and :meth:`committed` or :meth:`finished` for those of
        ``denoise`` whose canvas is finished (without it the canvas is denoised by another step).
        """
        ended = self._end(now)
        admitted = self._admit()
        evicted, self._released = tuple(self._released), []
        encode = self._encode()
        for r in self._running.values():
            r.denoises = r.cached == len(r.tokens)
            r.scheduled = r.denoises or r.planned > 0
        denoise = tuple((key, r.slot) for key, r in self._running.items() if r.denoises)
        return Schedule(ended, evicted, admitted, encode, denoise)

    def _end(self, now: float) -> tuple[Ended, ...]:
        ended = [Ended(key, None, "displaced") for key in self._displaced]
        self._displaced.clear()
        entries: list[_Waiting | _Running] = [*self._waiting.values(), *self._running.values()]
        for entry in entries:
            job = entry.job
            if entry.cancelled:
                ended.append(Ended(job.key, self._remove(job.key), "cancelled"))
            elif job.deadline is not None and job.deadline <= now:
                ended.append(Ended(job.key, self._remove(job.key), "deadline"))
        return tuple(ended)

    def _remove(self, key: int) -> int | None:
        """Forget a job without keeping its cache. Returns its slot."""
        if self._waiting.pop(key, None) is not None:
            return None
        slot = self._running.pop(key).slot
        self._empty.add(slot)
        return slot

    def _admit(self) -> tuple[Admission, ...]:
        admitted = []
        while self._waiting:
            job = self._next()
            pages = self._pages_for(job)
            # kept caches give way, so only what runs counts
            taken = sum(r.pages for r in self._running.values())
            if len(self._running) == self._slots or taken + pages > self._pages:
                break  # nobody behind it is admitted either: smaller jobs would keep a big one out for ever
            slot, reused = self._choose_slot(job)
            self._empty.discard(slot)
            self._kept.pop(slot, None)
            while pages > self.free_pages:
                self._evict()
            self._leave_queue(job.key)
            self._running[job.key] = _Running(job, slot, pages, list(job.tokens), reused)
            self._take_turn(job.client)
            admitted.append(Admission(job.key, slot, reused, pages * self._page))
        return tuple(admitted)

    def _next(self) -> Job:
        """Of those with the first priority, one of the client with fewest running, then of the one whose turn was
        longest ago; of equals, min takes the earliest submitted."""
        running = Counter(r.job.client for r in self._running.values())

        def order(w: _Waiting) -> tuple[int, int, int]:
            return w.priority, running[w.job.client], self._turns.get(w.job.client, 0)

        return min(self._waiting.values(), key=order).job

    def _take_turn(self, client: str) -> None:
        self._turn += 1
        present = {w.job.client for w in self._waiting.values()} | {r.job.client for r in self._running.values()}
        self._turns = {name: turn for name, turn in self._turns.items() if name in present} | {client: self._turn}

    def _pages_for(self, job: Job) -> int:
        return -(-job.room // self._page)

    def _choose_slot(self, job: Job) -> tuple[int, int]:
        """A slot that is not running, and how many tokens of its kept cache are reused."""
        # A match shorter than a chunk saves less than one piece. Reusing it would also make the pieces in which a short
        # prompt is encoded, and with them the rounding of its result, depend on what ran before.
        matches = {
            slot: n
            for slot, kept in self._kept.items()
            if kept.job.salt == job.salt
            and (n := len(kept.tokens)) >= (len(job.tokens) if job.reads else self._chunk)
            and kept.job.reads >= job.reads
            and list(job.tokens[:n]) == kept.tokens
        }
        if matches:
            slot = max(matches, key=matches.__getitem__)
            return slot, matches[slot]
        return min(self._empty) if self._empty else next(iter(self._kept)), 0

    def _evict(self) -> None:
        slot = next(iter(self._kept))
        del self._kept[slot]
        self._empty.add(slot)
        self._released.append(slot)

    def _leave_queue(self, key: int) -> None:
        leaving = self._waiting.pop(key)
        for other in self._waiting.values():
            # by a client whose turn it was is not overtaken: turns come round by themselves
            if other.job.key < key and other.priority > leaving.priority:
                other.overtaken += 1

    def _encode(self) -> tuple[Encode, ...]:
        for r in self._running.values():
            r.planned = 0
        pending = [r for r in self._running.values() if r.cached < len(r.tokens)]
        # a budget each: under one for both, the canvases of others could keep a prompt out plan after plan
        commits = self._pieces([r for r in pending if not r.prefilling])
        prompts = self._pieces([r for r in pending if r.prefilling])
        return (*commits, *prompts)

    def _pieces(self, pending: Sequence[_Running]) -> list[Encode]:
        """The next piece of each, in order, while they fit a chunk."""
        pieces = []
        budget = self._chunk
        for r in pending:
            size = len(r.tokens) - r.cached
            if size > self._chunk:
                # at absolute multiples of the chunk, whatever the budget: pieces follow from the request alone
                size = self._chunk - r.cached % self._chunk
            if size > budget:
                break
            budget -= size
            r.planned = size
            pieces.append(Encode(r.job.key, r.slot, r.cached, tuple(r.tokens[r.cached : r.cached + size])))
        return pieces

    # -- what came of it --------------------------------------------------------------

    def encoded(self, key: int) -> None:
        """The piece of the last plan is in the cache.

        Raises:
            ValueError: when the job has ended, or the last plan encodes nothing of it.
        """
        r = self._running.get(key)
        if r is None or r.planned == 0:
            raise ValueError(f"job {key}: reported as encoded, but the last plan encodes nothing of it")
        r.cached += r.planned
        r.planned = 0

    def committed(self, key: int, tokens: Sequence[int]) -> None:
        """A canvas is finished, and ``tokens`` are to be encoded before the next one is denoised.

        Raises:
            ValueError: when the job has ended, when the last plan does not denoise it or it was reported on since, or
                when its room is too small.
        """
        r = self._denoised(key, "committed")
        if len(r.tokens) + len(tokens) > r.job.room:
            raise ValueError(f"job {key}: {len(tokens)} tokens after {len(r.tokens)} exceed its room of {r.job.room}")
        r.tokens += tokens
        r.denoises = False

    def finished(self, key: int) -> None:
        """The request is done; what is in its cache is kept for a later prompt that starts with it.

        Raises:
            ValueError: when the job has ended, or when the last plan does not denoise it or it was reported on since.
        """
        r = self._denoised(key, "finished")
        del self._running[key]
        self._kept[r.slot] = r

    def _denoised(self, key: int, report: str) -> _Running:
        r = self._running.get(key)
        if r is None or not r.denoises:
            raise ValueError(f"job {key}: reported as {report}, but the last plan does not denoise it, or it is done")
        return r

    def failed(self, key: int) -> None:
        """An error ended the job, waiting or running. Its slot, if any, is in the next plan's ``evicted``.

        Raises:
            ValueError: when the job has ended.
        """
        if key not in self._waiting and key not in self._running:
            raise ValueError(f"job {key}: reported as failed, but it has ended")
        slot = self._remove(key)
        if slot is not None:
            self._released.append(slot)
