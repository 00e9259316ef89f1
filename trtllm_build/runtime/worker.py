"""The engine's one thread: asks the scheduler what to do, has the backend do it, reports what came of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from trtllm_build.contract import Backend, CanvasStep, EncodeStep, LabelLogits, ReadOut, ReadStep
from trtllm_build.runtime.reading import ReadingSequence
from trtllm_build.runtime.request import Block, FinishReason
from trtllm_build.runtime.scheduler import Admission, Encode, Job, QueueFull, Scheduler
from trtllm_build.runtime.sequence import RunningSequence
from trtllm_build.runtime.stats import EngineStats, Progress, Totals, Work
from trtllm_build.runtime.ticket import Ticket

_log = logging.getLogger(__name__)
_Step = TypeVar("_Step")
_Result = TypeVar("_Result")


class Worker:
    """Runs requests until it is closed.

    Args:
        backend: the loaded engine.
        scheduler: decides; this object serialises access to it.
        threads: CPU threads of the backend.
    """

    def __init__(self, backend: Backend, scheduler: Scheduler, threads: int):
        self._backend = backend
        self._scheduler = scheduler
        self._threads = threads
        self._tickets: dict[int, Ticket] = {}
        self._totals = Totals()
        self._work = Work()  # of requests that ended
        self._submitted = 0
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="diffgemma-engine", daemon=True)
        self._thread.start()

    def submit(self, sequence: RunningSequence | ReadingSequence, room: int, cache_bytes: int) -> Ticket:
        """Queue a request whose cache needs ``room`` tokens.

        Raises:
            QueueFull: when as many requests wait as may wait.
        """
        request = sequence.request
        with self._wake:
            if self._closing:
                raise RuntimeError("the engine is closed")
            ticket = Ticket(self._submitted, sequence, cache_bytes, self._cancel)
            end = None if request.deadline is None else ticket.submitted + request.deadline
            owner = request.client, request.cache_salt, isinstance(sequence, ReadingSequence)
            try:
                self._scheduler.submit(Job(ticket.key, request.prompt_ids, room, request.priority, end, *owner))
            except QueueFull:
                self._totals.refused += 1
                raise
            self._submitted += 1
            self._tickets[ticket.key] = ticket
            self._wake.notify()
        return ticket

    def stats(self) -> EngineStats:
        """Totals since the start, and what is held now."""
        with self._wake:
            return self._totals.snapshot(self._scheduler.waiting, self._scheduler.running, self._backend.cache_bytes())

    def progress(self) -> Progress:
        """How far it is. Cheap: for asking several times a second."""
        with self._wake:
            occupancy, ended, tickets = self._scheduler.occupancy(), self._work, list(self._tickets.values())
            now = time.monotonic()
        # without the lock, which the engine's thread needs: its counts only grow, and who ends meanwhile ends after now
        return Progress(occupancy, sum((ticket.work(now) for ticket in tickets), ended))

    def close(self) -> None:
        """Cancel what runs and waits, and end the thread."""
        with self._wake:
            self._closing = True
            for key in self._scheduler.unfinished():
                self._scheduler.cancel(key)
            self._wake.notify()
        self._thread.join()

    def _cancel(self, key: int) -> None:
        with self._wake:
            self._scheduler.cancel(key)
            self._wake.notify()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or not self._scheduler.idle)
                if self._scheduler.idle:
                    return
                plan = self._scheduler.plan(time.monotonic())
            for ended in plan.ended:
                if ended.slot is not None:
                    self._backend.release(ended.slot)
                if ended.reason == "displaced":
                    self._leave(ended.key, "unavailable", "the queue is full, and more of this client's requests wait")
                else:
                    self._leave(ended.key, ended.reason)
            for slot in plan.evicted:
                self._backend.release(slot)
            for admission in plan.admitted:
                self._admit(admission)
            self._encode([piece for piece in plan.encode if piece.key in self._tickets])
            self._denoise([(key, slot) for key, slot in plan.denoise if key in self._tickets])

    def _admit(self, admission: Admission) -> None:
        ticket = self._tickets[admission.key]
        ticket.admit(admission.reused)
        try:
            self._backend.admit(admission.slot, admission.room, admission.reused)
        except Exception as error:
            self._fail(admission.key, error)

    def _encode(self, pieces: list[Encode]) -> None:
        """A chunk of each of several prompts, or committed canvases."""
        if not pieces:
            return
        steps = [EncodeStep(p.slot, torch.tensor(p.tokens), p.start) for p in pieces]
        try:
            results = self._backend.encode(steps)
        except Exception as error:
            results = [error] * len(steps)
        for piece, result in zip(pieces, results, strict=True):
            if result is not None:
                self._fail(piece.key, result)
                continue
            self._tickets[piece.key].encode(len(piece.tokens))
            with self._wake:
                self._scheduler.encoded(piece.key)

    def _denoise(self, running: list[tuple[int, int]]) -> None:
        """One denoising step of every running canvas; finished ones are committed."""
        canvases: dict[int, CanvasStep] = {}
        reads: dict[int, ReadStep] = {}
        for key, slot in running:
            try:
                step = self._tickets[key].sequence.next_step(slot)
            except Exception as error:
                self._fail(key, error)
                continue
            if isinstance(step, ReadStep):
                reads[key] = step
            else:
                canvases[key] = step
        self._run_steps(canvases, self._backend.denoise, self._advance)
        self._run_steps(reads, self._backend.read, self._read)

    def _run_steps(
        self,
        steps: dict[int, _Step],
        run: Callable[[list[_Step]], list[_Result | Exception]],
        take: Callable[[int, _Result], None],
    ) -> None:
        """Steps by their job, and what is done with each one's result."""
        if not steps:
            return
        try:
            results = run(list(steps.values()))
        except Exception as error:
            results = [error] * len(steps)
        for key, result in zip(steps, results, strict=True):
            try:  # what fails in one request stays in that request
                if isinstance(result, Exception):
                    raise result
                take(key, result)
            except Exception as error:
                self._fail(key, error)

    def _read(self, key: int, result: LabelLogits) -> None:
        ticket = self._tickets[key]
        sequence = ticket.sequence
        assert isinstance(sequence, ReadingSequence)
        ticket.encoded += len(sequence.request.canvases[sequence.canvas_index].token_ids)
        if sequence.advance(result):
            with self._wake:
                self._scheduler.finished(key)
            self._end(key, sequence.end("stop", ticket.stats()))

    def _advance(self, key: int, result: ReadOut) -> None:
        ticket = self._tickets[key]
        sequence = ticket.sequence
        assert isinstance(sequence, RunningSequence)
        if not sequence.advance(result):
            return
        seconds = ticket.canvas()
        block, tokens = sequence.commit(ticket.stats, seconds)
        if tokens is None:
            with self._wake:
                self._scheduler.finished(key)
            self._end(key, block)
            return
        sequence.emit(block)
        with self._wake:
            self._scheduler.committed(key, tokens)

    def _fail(self, key: int, error: Exception) -> None:
        with self._wake:
            self._scheduler.failed(key)
        self._leave(key, "error", f"{type(error).__name__}: {error}")

    def _leave(self, key: int, reason: FinishReason, error: str | None = None) -> None:
        ticket = self._tickets[key]
        try:
            block = ticket.sequence.end(reason, ticket.stats(), error)
        except Exception:  # what it held back cannot be decoded: it ends without; this thread is everybody's
            _log.exception("the last text of a request is lost (%s)", reason)
            block = Block(max(ticket.sequence.canvas_index, 0), (), "", 0, (), reason, error, ticket.stats())
        self._end(key, block)

    def _end(self, key: int, block: Block) -> None:
        """Count a request, then let its caller see its last block."""
        assert block.finish_reason is not None
        assert block.stats is not None
        with self._wake:
            ticket = self._tickets.pop(key)
            self._work += ticket.work(time.monotonic())
            self._totals.add(block.finish_reason, ticket.sequence.tokens, block.stats)
        try:
            ticket.sequence.emit(block)
        except Exception:  # the caller's own callback raised: its request ends all the same, and no other suffers
            _log.exception("a request's callback raised on its last event (%s)", block.finish_reason)
        ticket.finish()
