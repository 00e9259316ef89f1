"""What the engine has done since it was loaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields

from trtllm_build.runtime.request import FinishReason, RequestStats
from trtllm_build.runtime.scheduler import Occupancy


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


@dataclass(frozen=True)
class Work:
    """What requests took of the engine, up to now or up to their end.

    Args:
        denoising_steps: steps of all canvases, a batch of several canvases counted once for each.
        accepted_tokens: positions accepted, over all steps.
        output_tokens: tokens committed, those that a cancelled or late request had included.
        input_tokens: of prompts that got a slot.
        reused_tokens: of them, found in the cache of an earlier request.
        queue_seconds: waited for a slot.
        compute_seconds: held one.
    """

    denoising_steps: int = 0
    accepted_tokens: int = 0
    output_tokens: int = 0
    input_tokens: int = 0
    reused_tokens: int = 0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))


@dataclass(frozen=True)
class Progress:
    """How far the engine is.

    Args:
        occupancy: who waits and runs, and what the cache holds, now.
        work: of all requests since the engine was loaded, those that wait and run included: no value ever falls.
    """

    occupancy: Occupancy
    work: Work


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
