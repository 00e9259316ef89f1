"""What the engine has done since it was loaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from trtllm_build.runtime.request import FinishReason, RequestStats


@dataclass(frozen=True)
class EngineStats:
    """Totals since the engine was loaded, and what it holds now. A rate is None before there is anything to divide.

    Args:
        waiting, running: requests now.
        finished: requests by finish reason.
        refused: requests that found the queue full.
        canvases, denoising_steps: of finished requests.
        tokens: tokens returned by finished requests.
        encoded_tokens, reused_tokens: tokens encoded, and tokens found in an earlier request's cache instead.
        steps_per_canvas, tokens_per_step, accepted_per_step: means over finished requests' steps.
        queue_seconds, first_block_seconds: means over finished requests that came so far.
        cache_bytes: bytes of keys and values now held, those kept for later prompts included.
    """

    waiting: int
    running: int
    finished: dict[str, int]
    refused: int
    canvases: int
    denoising_steps: int
    tokens: int
    encoded_tokens: int
    reused_tokens: int
    steps_per_canvas: float | None
    tokens_per_step: float | None
    accepted_per_step: float | None
    queue_seconds: float | None
    first_block_seconds: float | None
    cache_bytes: int


class Totals:
    """Sums over finished requests. Its owner serialises access."""

    def __init__(self) -> None:
        self.refused = 0
        self._reasons: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()

    def add(self, reason: FinishReason, tokens: int, stats: RequestStats) -> None:
        """Count one finished request, which returned ``tokens``."""
        self._reasons[reason] += 1
        sums: dict[str, float] = {
            "tokens": tokens,
            "canvases": stats.canvases,
            "steps": stats.denoising_steps,
            "accepted": stats.accepted_per_step * stats.denoising_steps,
            "encoded": stats.encoded_tokens,
            "reused": stats.reused_tokens,
        }
        for name, value in (("queue", stats.queue_seconds), ("first", stats.first_block_seconds)):
            if value is not None:
                sums |= {name: value, f"{name}_count": 1}
        for name, value in sums.items():
            self._sums[name] += value  # type: ignore[assignment]

    def snapshot(self, waiting: int, running: int, cache_bytes: int) -> EngineStats:
        """The totals as they stand."""
        s = self._sums

        def mean(total: str, count: str) -> float | None:
            return s[total] / s[count] if s[count] else None

        return EngineStats(
            waiting=waiting,
            running=running,
            finished=dict(self._reasons),
            refused=self.refused,
            canvases=s["canvases"],
            denoising_steps=s["steps"],
            tokens=s["tokens"],
            encoded_tokens=s["encoded"],
            reused_tokens=s["reused"],
            steps_per_canvas=mean("steps", "canvases"),
            tokens_per_step=mean("tokens", "steps"),
            accepted_per_step=mean("accepted", "steps"),
            queue_seconds=mean("queue", "queue_count"),
            first_block_seconds=mean("first", "first_count"),
            cache_bytes=cache_bytes,
        )
