"""The one thread that speaks to Triton: it sends the engine's events and looks whether clients are still there."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar
from weakref import WeakValueDictionary

from nemo_diffgemma.errors import FieldError
from triton_repo.python_backend import LOOK_S
from triton_repo.python_backend.decisions import DecisionManner, DecisionReply, DecisionRequest, DecisionsAsked
from triton_repo.python_backend.metrics import Outcome
from triton_repo.python_backend.parse import Asked, Manner, ParsedRequest
from triton_repo.python_backend.record import Caller, Record
from triton_repo.python_backend.reply import Outputs, Reply
from triton_repo.python_backend.telemetry import REFRESH_S, Telemetry
from trtllm_build.runtime.read import Reading
from trtllm_build.runtime.request import Block, Event, RequestStats
from trtllm_build.runtime.scheduler import QueueFull

if TYPE_CHECKING:
    from trtllm_build.runtime.process import EngineProcess, RemoteTicket

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)


# the client's mistake; as many requests wait as may wait; ours
Failure = Literal["refused", "unavailable", "failed"]


class ShuttingDown(RuntimeError):
    """What comes now is not begun."""


def _reply(manner: Manner | DecisionManner) -> Reply | DecisionReply:
    return DecisionReply(manner) if isinstance(manner, DecisionManner) else Reply(manner)


class Channel(Protocol):
    """One request's way back to its client."""

    def send(self, outputs: Outputs, last: bool) -> None: ...
    def fail(self, message: str, why: Failure) -> None: ...
    def is_cancelled(self) -> bool: ...


class Call:
    """One request under way. Its methods may be called from any thread, and do not wait."""

    def __init__(self, channel: Channel, courier: Courier):
        self.opened = time.monotonic()
        self.caller = Caller()
        self.channel = channel
        self.reply: Reply | DecisionReply | None = None
        self.ticket: RemoteTicket | None = None
        self.outcome: Outcome | None = None  # once it has ended
        self._over = False
        self.ends: float | None = None  # the deadline, as :func:`time.monotonic` counts
        self._courier = courier
        self._lock = threading.Lock()

    def expect(self, asked: Asked | DecisionsAsked) -> None:
        """Be ready to answer ``asked``, whose prompt is yet to be read."""
        deadline = asked.request.deadline
        self.ends = None if deadline is None else self.opened + deadline
        self.caller = replace(self.caller, traceparent=asked.traceparent or self.caller.traceparent)
        self.reply = _reply(asked.manner)

    def begin(self, generation: ParsedRequest | DecisionRequest, engine: EngineProcess) -> None:
        """Have the engine begin, unless it has ended meanwhile."""
        left = None if self.ends is None else self.ends - time.monotonic()
        if left is not None and left <= 0:
            self.end("deadline")
            return
        with self._lock:
            if not self._over:
                self.reply = _reply(generation.manner)
                self.ticket = engine.submit(replace(generation.request, deadline=left), self.on_event)

    def end(self, reason: Literal["cancelled", "deadline"]) -> None:
        """End it, which the engine does if it has it; its last event then says ``cancelled``."""
        with self._lock:
            if self.ticket is not None:
                self.ticket.cancel()
            if self._over or self.ticket is not None:
                return
            self._over = True
        self.on_event(Block(0, (), "", 0, finish_reason=reason))

    def is_over(self) -> bool:
        """Whether it ended before the engine had it."""
        return self._over

    def look(self) -> None:
        """End it when its client has gone, or its time is over before the engine has it, which looks itself."""
        if self._over:
            return
        if self.channel.is_cancelled():
            self.end("cancelled")
        elif self.ticket is None and self.ends is not None and time.monotonic() >= self.ends:
            self.end("deadline")

    def on_event(self, event: Event | Reading | Exception) -> None:
        """Queue an event of the engine, or the error that ends the request."""
        self._courier.queue.put((self, event))


class Courier:
    """Sends from a thread of its own, so that no client and no round trip to tritonserver delays the engine.

    Looking whether a client is still there, and each value of a histogram, are such round trips too. These are chores:
    done one at a time, when nothing is to be sent; if there always is, one every :data:`LOOK_S`.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self.queue: queue.SimpleQueue[tuple[Call, Event | Reading | Exception | None] | None] = queue.SimpleQueue()
        self._calls: set[Call] = set()
        self._chores: deque[Callable[[], None]] = deque()
        # Entries go when the last other reference to their call does.
        self._named: WeakValueDictionary[str, Call] = WeakValueDictionary()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def open(self, channel: Channel, name: str | None = None) -> Call:
        """Watch ``channel`` from now on, until its last event; ``name`` is what :meth:`cancel` knows it by."""
        call = Call(channel, self)
        if name is not None:
            self._named[name] = call
        self.queue.put((call, None))
        return call

    def cancel(self, name: str) -> None:
        """End the request of that name; one that is unknown has ended."""
        call = self._named.get(name)
        if call is not None:
            call.end("cancelled")

    def close(self) -> None:
        """Send what is queued, then end the thread."""
        self.queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        looked = done = time.monotonic()
        while True:
            try:
                item = self.queue.get(timeout=0 if self._chores else LOOK_S if self._calls else REFRESH_S)
                if item is None:
                    break
                self._take(*item)
                if time.monotonic() - done < LOOK_S:
                    continue
            except queue.Empty:
                pass
            done = time.monotonic()
            if self._chores:
                self._chores.popleft()()
            elif done - looked >= LOOK_S:
                looked = done
                self._chores.extend(partial(self._look, call) for call in self._calls)
                self._observe(self._telemetry.refresh, looked)
        while self._chores:
            self._chores.popleft()()

    def _take(self, call: Call, event: Event | Reading | Exception | None) -> None:
        if event is None:
            self._calls.add(call)
        elif call in self._calls:
            self._guarded(call, partial(self._deliver, call, event))

    def _guarded(self, call: Call, action: Callable[[], None]) -> None:
        """What fails for one request ends that request, and never this thread."""
        try:
            action()
        except Exception as error:
            _LOG.exception("a request failed on its way to Triton")
            self._calls.discard(call)
            if call.ticket is not None:
                call.ticket.cancel()
            message = f"{type(error).__name__}: {error}"
            with suppress(Exception):  # its last response may already be out
                call.channel.fail(message, "failed")
            self._ended(call, "error", error=message)

    def _deliver(self, call: Call, event: Event | Reading | Exception) -> None:
        last = isinstance(event, Exception) or (isinstance(event, Block) and event.finish_reason is not None)
        outcome: Outcome | None = event.finish_reason if isinstance(event, Block) else None
        if last:
            self._calls.discard(call)
        if isinstance(event, Exception):
            full: Failure = "unavailable" if isinstance(event, QueueFull | ShuttingDown) else "failed"
            failure: Failure = "refused" if isinstance(event, FieldError) else full
            call.channel.fail(str(event), failure)
            # what a client sent stays out of the log
            self._ended(call, *(("error", None, str(event)) if failure == "failed" else (failure,)))
        elif isinstance(event, Block) and event.finish_reason in ("error", "unavailable"):
            why: Failure = "failed" if event.finish_reason == "error" else "unavailable"
            call.channel.fail(event.error or "the engine failed", why)
        elif call.reply is not None and (outputs := call.reply.outputs(event)) is not None:
            call.channel.send(outputs, last)
            # as the client was told: an answer before a suffix ends where that begins
            outcome = outputs["finish_reason"].item().decode() or None
        if isinstance(event, Block):
            self._observe(self._telemetry.block, event)
            if outcome is not None:
                self._ended(call, outcome, event.stats, event.error if outcome == "error" else None)

    def _ended(self, call: Call, outcome: Outcome, stats: RequestStats | None = None, error: str | None = None) -> None:
        """Report a request's end, which it has once."""
        if call.outcome is not None:
            return
        call.outcome = outcome
        tokens = 0 if call.reply is None else call.reply.tokens
        record = Record(call.caller, outcome, call.opened, time.monotonic(), tokens, stats, error)
        self._observe(self._telemetry.ended, record)

    def _observe(self, tell: Callable[[_T], None], what: _T) -> None:
        """Have something counted, later; what cannot be counted is still answered."""

        def chore() -> None:
            try:
                tell(what)
            except Exception:
                _LOG.exception("telemetry failed")

        self._chores.append(chore)

    def _look(self, call: Call) -> None:
        # Of one that has ended tritonserver knows nothing any more, and to ask would crash it.
        if call in self._calls:
            self._guarded(call, call.look)
