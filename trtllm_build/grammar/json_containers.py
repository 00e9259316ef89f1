"""Arrays of so many items and objects of these keys as expressions."""

from __future__ import annotations

from collections.abc import Sequence

from trtllm_build.grammar.expressions import (
    EMPTY,
    Expression,
    Loop,
    Repetition,
    optional,
    sequence,
)
from trtllm_build.grammar.json_text import Spacing


def array(
    first: Sequence[Expression], more: Expression | None, least: int, most: int | None, style: Spacing
) -> Expression:
    """An array of ``least`` to ``most`` items.

    Args:
        first: the first items, at most ``most``.
        more: every item behind them; None for no more items.
        least: at most ``len(first)`` when there are no more.
        most: None for any number.
        style: its whitespace.
    """
    if not first and more is not None:
        return style.wrapped("[]", _alike(more, least, most, style.comma))
    rest: Expression = EMPTY
    if more is not None:
        count = None if most is None else most - len(first)
        rest = Repetition(sequence(style.comma, more), max(least - len(first), 0), count)
    for i in reversed(range(len(first))):
        whole = sequence(style.comma, first[i], rest) if i else sequence(first[0], rest)
        rest = whole if i < least else optional(whole)
    return style.wrapped("[]", rest)


def _alike(item: Expression, least: int, most: int | None, comma: Expression) -> Expression:
    """Items of one kind; ``most`` is at least one."""
    if most is None:
        some = sequence(Repetition(sequence(item, comma), max(least - 1, 0), max(least - 1, 0)), Loop(item, comma))
    else:
        some = sequence(item, Repetition(sequence(comma, item), max(least - 1, 0), most - 1))
    return some if least else optional(some)
