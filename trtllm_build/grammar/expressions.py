"""What a grammar says, as a tree: regular expressions over text, plus control tokens, which are no text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtllm_build.grammar.automaton import Automaton

Ranges = tuple[tuple[int, int], ...]  # code points, both ends included


class Expression:
    """A set of texts. Two expressions are the same only if they are the same object."""

    __slots__ = ()


@dataclass(frozen=True, eq=False)
class Literal(Expression):
    """These bytes."""

    data: bytes


@dataclass(frozen=True, eq=False)
class CodePoints(Expression):
    """One character of these ranges; surrogates in them count for nothing, since UTF-8 has none."""

    ranges: Ranges


@dataclass(frozen=True, eq=False)
class Concatenation(Expression):
    """The parts, one after the other; of no parts the empty text."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Alternation(Expression):
    """One of the parts; of no parts nothing at all, not even the empty text."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Repetition(Expression):
    """``item`` from ``least`` to ``most`` times; without ``most`` as often as one likes."""

    item: Expression
    least: int = 0
    most: int | None = None


@dataclass(frozen=True, eq=False)
class Loop(Expression):
    """``item``, once or more, with ``separator`` in between.

    As a repetition the item would be written twice, and so would everything in it: a power of two of nested lists.
    """

    item: Expression
    separator: Expression


@dataclass(frozen=True, eq=False)
class Series(Expression):
    """Items in this order, ``separator`` between those that are there; an item is there always or at will.

    Args:
        items: each with whether it must be there.
        separator: between two items that are there.
    """

    items: tuple[tuple[Expression, bool], ...]
    separator: Expression


@dataclass(frozen=True, eq=False)
class Token(Expression):
    """A token by its id: one that has no text."""

    id: int


@dataclass(frozen=True, eq=False)
class Machine(Expression):
    """The texts that an automaton accepts."""

    automaton: Automaton


@dataclass(frozen=True, eq=False)
class Named(Expression):
    """``item``, with the place that it comes from: an error about size names the place."""

    place: str
    item: Expression


EMPTY = Concatenation(())


def literal(text: str) -> Literal:
    """``text`` in UTF-8."""
    return Literal(text.encode())


def sequence(*parts: Expression) -> Concatenation:
    """The parts, one after the other."""
    return Concatenation(parts)


def either(*parts: Expression) -> Alternation:
    """One of the parts."""
    return Alternation(parts)


def optional(item: Expression) -> Repetition:
    """``item`` or the empty text."""
    return Repetition(item, 0, 1)


def translate(expression: Expression, change: Callable[[Ranges], Expression]) -> Expression:
    """``expression`` with each set of characters replaced by what ``change`` makes of it.

    Raises:
        TypeError: for expressions whose characters are not known as such (literal bytes, tokens, automata).
    """
    match expression:
        case CodePoints(ranges):
            return change(ranges)
        case Concatenation(parts):
            return Concatenation(tuple(translate(part, change) for part in parts))
        case Alternation(parts):
            return Alternation(tuple(translate(part, change) for part in parts))
        case Repetition(item, least, most):
            return Repetition(translate(item, change), least, most)
    raise TypeError(f"no characters to translate in {type(expression).__name__}")
