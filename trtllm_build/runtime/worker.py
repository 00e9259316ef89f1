"""The engine's one thread: requests join and leave the running batch between denoising steps."""

from __future__ import annotations

import logging
import threading
from collections import deque

import torch

from trtllm_build.backends.base import Backend
from trtllm_build.network.vocabulary import ReadOut
from trtllm_build.runtime.sequence import Sequence

_log = logging.getLogger(__name__)


class Ticket:
    """A submitted request."""

    def __init__(self, sequence: Sequence, wake: threading.Condition):
        self.sequence = sequence
        self.cancelled = False
        self._wake = wake
        self._done = threading.Event()

    def cancel(self) -> None:
        """End the request at the next denoising step; its last event says ``cancelled``. May be called at any time."""
        with self._wake:
            self.cancelled = True
            self._wake.notify()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the last event (seconds); False when the time ran out first."""
        return self._done.wait(timeout)

    def finish(self) -> None:
        """Called by the worker after the last event."""
        self._done.set()


class Worker:
    """First come, first served, over a fixed number of slots."""

    def __init__(self, backend: Backend, slots: int, canvas_length: int):
        self._backend = backend
        self._canvas_length = canvas_length
        self._free = list(reversed(range(slots)))
        self._waiting: deque[Ticket] = deque()
        self._running: dict[int, Ticket] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="diffgemma-engine", daemon=True)
        self._thread.start()

    def submit(self, sequence: Sequence) -> Ticket:
        """Queue a request."""
        ticket = Ticket(sequence, self._wake)
        with self._wake:
            if self._closing:
                raise RuntimeError("the engine is closed")
            self._waiting.append(ticket)
            self._wake.notify()
        return ticket

    def close(self) -> None:
        """Cancel what runs and waits, and end the thread."""
        with self._wake:
            self._closing = True
            for ticket in [*self._waiting, *self._running.values()]:
                ticket.cancelled = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self._waiting or self._running)
                if self._closing and not self._waiting and not self._running:
                    return
                cancelled = [t for t in self._waiting if t.cancelled]
                self._waiting = deque(t for t in self._waiting if not t.cancelled)
                admitted = [self._waiting.popleft() for _ in range(min(len(self._free), len(self._waiting)))]
            for ticket in cancelled:
                self._leave(None, ticket, "cancelled")
            for slot, ticket in list(self._running.items()):
                if ticket.cancelled:
                    self._leave(slot, ticket, "cancelled")
            for ticket in admitted:
                self._admit(ticket)
            if self._running:
                self._step()

    def _admit(self, ticket: Ticket) -> None:
        slot = self._free.pop()
        self._running[slot] = ticket
        try:
            prompt = torch.tensor(ticket.sequence.request.prompt_ids)
            self._backend.encode(slot, prompt, torch.arange(len(prompt)))
            self._start_canvas(ticket)
        except Exception as error:
            self._leave(slot, ticket, "error", error)

    def _start_canvas(self, ticket: Ticket) -> None:
        ticket.sequence.start_canvas(self._backend.new_soft_embeddings(self._canvas_length))

    def _step(self) -> None:
        """One denoising step of every running canvas; finished ones are committed."""
        slots, tickets = list(self._running), list(self._running.values())
        sequences = [t.sequence for t in tickets]
        try:
            results = self._backend.denoise(
                slots,
                torch.stack([s.canvas_ids for s in sequences]),
                torch.stack([s.soft_embeddings for s in sequences]),
                torch.tensor([s.temperature for s in sequences]),
                torch.stack([s.sample_draws() for s in sequences]),
            )
        except Exception as error:
            for slot, ticket in zip(slots, tickets, strict=True):
                self._leave(slot, ticket, "error", error)
            return
        for slot, ticket, result in zip(slots, tickets, results, strict=True):
            try:
                self._advance(slot, ticket, result)
            except Exception as error:  # what fails in one request stays in that request
                self._leave(slot, ticket, "error", error)

    def _advance(self, slot: int, ticket: Ticket, result: ReadOut) -> None:
        sequence = ticket.sequence
        if not sequence.advance(result):
            return
        tokens = sequence.commit()
        if tokens is None:
            self._release(slot, ticket)
            return
        start = len(sequence.request.prompt_ids) + sequence.canvas_index * self._canvas_length
        self._backend.encode(slot, tokens, torch.arange(start, start + len(tokens)))
        self._start_canvas(ticket)

    def _leave(self, slot: int | None, ticket: Ticket, reason: str, error: Exception | None = None) -> None:
        try:
            if reason == "cancelled":
                ticket.sequence.end("cancelled")
            else:
                ticket.sequence.end("error", f"{type(error).__name__}: {error}")
        except Exception:  # the caller's own callback raised: its request ends all the same, and no other suffers
            _log.exception("a request's callback raised on its last event (%s)", reason)
        self._release(slot, ticket)

    def _release(self, slot: int | None, ticket: Ticket) -> None:
        if slot is not None:
            self._backend.release(slot)
            del self._running[slot]
            self._free.append(slot)
        ticket.finish()
