"""When requests are sent, if they do not wait for one another."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import takewhile


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Arrival times of a Poisson process, without end.

    Args:
        rate: mean arrivals per second.
        seed: the same seed gives the same times.

    Yields:
        Seconds since the beginning, ascending.
    """
    draw = random.Random(seed)
    now = 0.0
    while True:
        now += draw.expovariate(rate)
        yield now


def within(times: Iterator[float], duration: float | None) -> Iterator[float]:
    """Those of ascending ``times`` (seconds) that lie within ``duration``; all without one."""
    return times if duration is None else takewhile(lambda at: at <= duration, times)
