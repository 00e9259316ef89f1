"""Sets of code points as sorted ranges that do not touch."""

from __future__ import annotations

from collections.abc import Iterable

from trtllm_build.grammar.expressions import Ranges

LAST = 0x10FFFF
SURROGATES: Ranges = ((0xD800, 0xDFFF),)


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The ranges, sorted, with those that overlap or touch made one."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return tuple(found)


def complement(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Every other code point."""
    found, start = [], 0
    for low, high in union(ranges):
        if low > start:
            found.append((start, low - 1))
        start = high + 1
    if start <= LAST:
        found.append((start, LAST))
    return tuple(found)


def without(ranges: Iterable[tuple[int, int]], others: Iterable[tuple[int, int]]) -> Ranges:
    """``ranges`` without ``others``."""
    return complement((*complement(ranges), *others))


def characters(text: str) -> Ranges:
    """The characters of a text."""
    return union((ord(c), ord(c)) for c in text)


def contains(ranges: Ranges, point: int) -> bool:
    """Whether a code point is in the ranges."""
    return any(low <= point <= high for low, high in ranges)
