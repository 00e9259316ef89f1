"""A submitted request, as its caller and the engine's thread see it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from trtllm_build.runtime.reading import ReadingSequence
from trtllm_build.runtime.request import CanvasTimes, RequestStats, Timeline
from trtllm_build.runtime.sequence import RunningSequence
from trtllm_build.runtime.stats import Work


class Ticket:
    """Times and counts of one request, and the way to cancel it.

    Args:
        key: the scheduler's handle of it.
        sequence: its state.
        cache_bytes: that its cache can come to fill.
        cancel: called with the key.
    """

    def __init__(
        self,
        key: int,
        sequence: RunningSequence | ReadingSequence,
        cache_bytes: int,
        cancel: Callable[[int], None],
    ):
        self.key = key
        self.sequence = sequence
        self.submitted = time.monotonic()
        self.admitted: float | None = None
        self.reused = 0
        self.encoded = 0
        self._missing = len(sequence.request.prompt_ids)  # tokens of the prompt that are not in the cache
        self._prefilled: float | None = None
        self._canvases: list[CanvasTimes] = []
        self._cache_bytes = cache_bytes
        self._cancel = cancel
        self._done = threading.Event()

    def cancel(self) -> None:
        """End the request at the next denoising step; its last event says ``cancelled``. May be called at any time."""
        self._cancel(self.key)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the last event (seconds); False when the time ran out first."""
        return self._done.wait(timeout)

    def admit(self, reused: int) -> None:
        """Called by the worker when it gets a slot, whose cache has the first ``reused`` tokens of the prompt."""
        self.admitted, self.reused = time.monotonic(), reused
        self._into_cache(reused, self.admitted)

    def encode(self, tokens: int) -> None:
        """Called by the worker when ``tokens`` more are in the cache."""
        self.encoded += tokens
        self._into_cache(tokens, time.monotonic())

    def _into_cache(self, tokens: int, now: float) -> None:
        if self._canvases:
            # a canvas may go in by pieces: the last one counts
            self._canvases[-1] = replace(self._canvases[-1], committed=now)
        else:
            self._missing -= tokens
            self._prefilled = now if self._missing <= 0 else None

    def canvas(self) -> float:
        """Called by the worker when a canvas is finished. Returns the seconds since that of the one before, or since
        submission.
        """
        now = time.monotonic()
        before = self._canvases[-1].ended if self._canvases else self.submitted
        times = self.sequence.canvas_times(now)
        assert times is not None, "a canvas that is finished was under way"
        self._canvases.append(times)
        return now - before

    def finish(self) -> None:
        """Called by the worker after the last event."""
        self._done.set()

    def work(self, now: float) -> Work:
        """What it has taken of the engine up to ``now``, in seconds of :func:`time.monotonic`."""
        s, admitted = self.sequence, self.admitted
        return Work(
            denoising_steps=s.steps,
            accepted_tokens=s.accepted,
            output_tokens=s.tokens,
            input_tokens=0 if admitted is None else len(s.request.prompt_ids),
            reused_tokens=self.reused,
            queue_seconds=(now if admitted is None else admitted) - self.submitted,
            # it may have been admitted since ``now``
            compute_seconds=0.0 if admitted is None else max(0.0, now - admitted),
        )

    def stats(self) -> RequestStats:
        """What it has taken so far."""
        s, now = self.sequence, time.monotonic()
        unfinished = s.canvas_times(now)
        canvases = (*self._canvases, *(() if unfinished is None else (unfinished,)))
        return RequestStats(
            queue_seconds=None if self.admitted is None else self.admitted - self.submitted,
            first_block_seconds=self._canvases[0].ended - self.submitted if self._canvases else None,
            seconds=now - self.submitted,
            prompt_tokens=len(s.request.prompt_ids),
            reused_tokens=self.reused,
            encoded_tokens=self.encoded,
            canvases=s.canvas_index + 1,
            denoising_steps=s.steps,
            accepted_per_step=s.accepted / s.steps if s.steps else 0.0,
            cache_bytes=self._cache_bytes,
            timeline=Timeline(self.submitted, self.admitted, self._prefilled, canvases, now),
        )
