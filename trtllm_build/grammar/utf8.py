"""Code points as bytes: which rows of byte ranges spell a range of code points in UTF-8."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from trtllm_build.grammar.code_points import SURROGATES, without
from trtllm_build.grammar.expressions import Ranges

Row = tuple[tuple[int, int], ...]  # a byte range for each byte of a character


@lru_cache(maxsize=4096)
def byte_rows(ranges: Ranges) -> tuple[Row, ...]:
    """Rows of byte ranges that spell exactly these code points, in order; none for surrogates, which UTF-8 lacks."""
    return tuple(row for low, high in without(ranges, SURROGATES) for row in _rows(low, high))


def _rows(low: int, high: int) -> Iterator[Row]:
    """Rows of one range: split until the bytes vary independently of each other."""
    for top in (0x7F, 0x7FF, 0xFFFF):  # the last code points of one, two and three bytes
        if low <= top < high:
            yield from _rows(low, top)
            yield from _rows(top + 1, high)
            return
    if high > 0x7F:
        for following in (1, 2, 3):
            mask = (1 << (6 * following)) - 1  # what the last `following` bytes say
            if low & ~mask == high & ~mask:
                continue
            if low & mask:
                yield from _rows(low, low | mask)
                yield from _rows((low | mask) + 1, high)
                return
            if high & mask != mask:
                yield from _rows(low, (high & ~mask) - 1)
                yield from _rows(high & ~mask, high)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))
