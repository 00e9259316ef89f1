"""The figures of a load, from its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, quantiles
from typing import Any

from triton_repo.bench.record import RequestRecord


@dataclass(frozen=True)
class Distribution:
    """A quantity over requests, blocks or canvases; percentiles are interpolated linearly between two values."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Distribution | None:
        """Of those ``values`` that are there; None when none is."""
        present = [value for value in values if value is not None]
        if not present:
            return None
        cuts = quantiles(present, n=100, method="inclusive") if len(present) > 1 else present * 99
        return cls(len(present), fmean(present), cuts[49], cuts[89], cuts[98], max(present))


@dataclass(frozen=True)
class Summary:
    """What ``diffgemma bench`` reports; times in seconds.

    Args:
        requests: that ended, however.
        answered: of them, to the end.
        errors: of the others, how many of each kind.
        seconds: from when the first was due to when the last ended.
        requests_per_second: answered ones.
        tokens_per_second: tokens of answered requests.
        first_block, latency: over answered requests, from when each was due.
        block: from a block of an answer to its next.
        request_tokens_per_second: tokens of an answered request over the seconds from sending it to its end.
        steps_per_canvas: denoising steps of each block of an answer.
        tokens_per_step: all tokens over all steps; None without any step.
        late: from when a request was due to when it was sent; what a client that cannot keep up shows.
    """

    requests: int
    answered: int
    errors: dict[str, int]
    seconds: float
    requests_per_second: float
    tokens_per_second: float
    first_block: Distribution | None
    block: Distribution | None
    latency: Distribution | None
    request_tokens_per_second: Distribution | None
    steps_per_canvas: Distribution | None
    tokens_per_step: float | None
    late: Distribution | None

    def as_json(self) -> dict[str, Any]:
        """For ``json.dump``."""
        return asdict(self)


def summarize(records: Sequence[RequestRecord]) -> Summary:
    """The figures of ``records``, in whatever order."""
    good = [record for record in records if record.answered]
    blocks = [block for record in good for block in record.blocks]
    seconds = max(r.ended for r in records) - min(r.due for r in records) if records else 0.0
    tokens, steps = sum(block.tokens for block in blocks), sum(block.steps for block in blocks)
    return Summary(
        requests=len(records),
        answered=len(good),
        errors=dict(sorted(Counter(r.outcome for r in records if not r.answered).items())),
        seconds=seconds,
        requests_per_second=len(good) / seconds if seconds else 0.0,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        first_block=Distribution.of(r.first_block_s for r in good),
        block=Distribution.of(s for r in good for s in r.block_s),
        latency=Distribution.of(r.latency_s for r in good),
        request_tokens_per_second=Distribution.of(r.tokens / (r.ended - r.sent) for r in good if r.ended > r.sent),
        # The last response of an answer that ended early may come without a canvas of its own.
        steps_per_canvas=Distribution.of(block.steps for block in blocks if block.steps),
        tokens_per_step=tokens / steps if steps else None,
        late=Distribution.of(r.sent - r.due for r in records),
    )


def rate_over_time(records: Sequence[RequestRecord], bins: int) -> tuple[list[float], list[float]]:
    """Tokens per second over the course of a load, of all blocks that came.

    Args:
        records: of the load.
        bins: how many equal spans its time is cut into.

    Returns:
        The middle of each span in seconds since the load began, and its rate.
    """
    blocks = [block for record in records for block in record.blocks]
    end = max((record.ended for record in records), default=0.0)
    if end <= 0:
        return [], []
    span, tokens = end / bins, [0] * bins
    for block in blocks:
        tokens[min(int(block.at / span), bins - 1)] += block.tokens
    return [(number + 0.5) * span for number in range(bins)], [count / span for count in tokens]
