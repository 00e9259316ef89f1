"""A submitted request, as its caller and the engine's thread see it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from trtllm_build.runtime.request import RequestStats
from trtllm_build.runtime.sequence import Sequence


class Ticket:
    """Times and counts of one request, and the way to cancel it.

    Args:
        key: the scheduler's handle of it.
        sequence: its state.
        cache_bytes: that its cache can come to fill.
        cancel: called with the key.
    """

    def __init__(self, key: int, sequence: Sequence, cache_bytes: int, cancel: Callable[[int], None]):
        self.key = key
        self.sequence = sequence
        self.submitted = time.monotonic()
        self.admitted: float | None = None
        self.first_block: float | None = None
        self.reused = 0
        self.encoded = 0
        self._cache_bytes = cache_bytes
        self._cancel = cancel
        self._done = threading.Event()

    def cancel(self) -> None:
        """End the request at the next denoising step; its last event says ``cancelled``. May be called at any time."""
        self._cancel(self.key)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the last event (seconds); False when the time ran out first."""
        return self._done.wait(timeout)

    def finish(self) -> None:
        """Called by the worker after the last event."""
        self._done.set()

    def stats(self) -> RequestStats:
        """What it has taken so far."""
        s = self.sequence
        return RequestStats(
            queue_seconds=None if self.admitted is None else self.admitted - self.submitted,
            first_block_seconds=None if self.first_block is None else self.first_block - self.submitted,
            seconds=time.monotonic() - self.submitted,
            prompt_tokens=len(s.request.prompt_ids),
            reused_tokens=self.reused,
            encoded_tokens=self.encoded,
            canvases=s.canvas_index + 1,
            denoising_steps=s.steps,
            accepted_per_step=s.accepted / s.steps if s.steps else 0.0,
            cache_bytes=self._cache_bytes,
        )
