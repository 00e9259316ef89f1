"""What is kept of a request when it has ended: one JSON line in the log, and its spans."""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from triton_repo.python_backend.metrics import Outcome
from triton_repo.python_backend.spans import Spans
from trtllm_build.runtime.request import RequestStats

# A request's name is for finding it again, not for filling the disk.
_LONGEST_ID = 256
# Records that wait to be written; more than a healthy disk and pipe ever let come together.
_WAITING = 10_000
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """What is known of a request besides what it asks.

    Args:
        request_id: the client's name for it, empty for none.
        traceparent: W3C trace context that it belongs to; None for none.
        prompt: what was asked, if that is to be logged.
    """

    request_id: str = ""
    traceparent: str | None = None
    prompt: str | None = None

    @property
    def name(self) -> str:
        """The request id, cut to a size that fits a log."""
        return self.request_id[:_LONGEST_ID]


@dataclass(frozen=True)
class Record:
    """One request that has ended. Times in seconds of :func:`time.monotonic`.

    Args:
        caller: whose it was.
        outcome: how it ended.
        opened: it came.
        ended: its last response was sent.
        output_tokens: tokens returned.
        stats: what it took; None when it did not reach the engine.
        error: what went wrong, for outcome ``error``.
    """

    caller: Caller
    outcome: Outcome
    opened: float
    ended: float
    output_tokens: int = 0
    stats: RequestStats | None = None
    error: str | None = None
    _clocks: tuple[int, int] = field(default_factory=lambda: (time.time_ns(), time.monotonic_ns()))

    def wall_ns(self, monotonic: float) -> int:
        """Nanoseconds since 1970, of a time of :func:`time.monotonic`."""
        wall, steady = self._clocks
        return wall - steady + round(monotonic * 1e9)

    def line(self, trace_id: str | None) -> str:
        """The JSON object of the log. Whatever a request id holds, it is one line: JSON escapes it."""
        stats = self.stats
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(self.wall_ns(self.ended) / 1e9, UTC).isoformat(timespec="milliseconds"),
            "event": "request",
            "request_id": self.caller.name,
            "outcome": self.outcome,
            "input_tokens": None if stats is None else stats.prompt_tokens,
            "reused_tokens": None if stats is None else stats.reused_tokens,
            "output_tokens": self.output_tokens,
            "canvases": 0 if stats is None else stats.canvases,
            "denoising_steps": 0 if stats is None else stats.denoising_steps,
            "queue_ms": None if stats is None else _ms(stats.queue_seconds),
            "first_block_ms": None if stats is None else _ms(stats.first_block_seconds),
            "total_ms": _ms(self.ended - self.opened),
            "trace_id": trace_id,
        }
        values |= {n: v for n, v in (("error", self.error), ("prompt", self.caller.prompt)) if v is not None}
        return json.dumps(values)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


class Recorder:
    """Writes records from a thread of its own: no log and no collector holds up who sends the answers.

    Args:
        spans: exports them; None for none.
    """

    def __init__(self, spans: Spans | None):
        self._spans = spans
        self._records: queue.Queue[Record | None] = queue.Queue(_WAITING)
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Have ``record`` written; never waits."""
        try:
            self._records.put_nowait(record)
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Write what is there, then end the thread."""
        self._records.put(None)
        self._thread.join()
        if self._spans is not None:
            self._spans.close()

    def _run(self) -> None:
        while (record := self._records.get()) is not None:
            try:
                self._write(record)
            except Exception:
                _LOG.exception("a request's record is lost")
            if self._lost:
                lost, self._lost = self._lost, 0
                _LOG.error("%d requests' records are lost: the log is too slow", lost)

    def _write(self, record: Record) -> None:
        # the trace id is the second field of four
        given = None if record.caller.traceparent is None else record.caller.traceparent.split("-")[1]
        trace_id = given if self._spans is None else self._spans.emit(record)
        # straight to the file, where tritonserver writes too: one call for a line keeps it whole
        rest = f"{record.line(trace_id)}\n".encode()
        while rest:
            rest = rest[os.write(sys.stderr.fileno(), rest) :]
