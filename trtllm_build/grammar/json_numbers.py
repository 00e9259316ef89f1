"""Numbers between bounds, and multiples, as automata over their digits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from trtllm_build.grammar.automaton import Automaton, minimal
from trtllm_build.grammar.budget import Budget
from trtllm_build.grammar.code_points import characters
from trtllm_build.grammar.determinise import automaton
from trtllm_build.grammar.expressions import (
    Alternation,
    CodePoints,
    Concatenation,
    Expression,
    Machine,
    Repetition,
    either,
    literal,
    optional,
    sequence,
)
from trtllm_build.grammar.json_text import any_number
from trtllm_build.grammar.products import intersection

LARGEST_MULTIPLE = 100
MOST_DIGITS = 18  # of an integer, and before the point
_LARGEST = Decimal(10**MOST_DIGITS - 1)
_DIGIT = CodePoints(characters("0123456789"))
_ANY = Repetition(_DIGIT)
_FRACTION = optional(sequence(literal("."), Repetition(_DIGIT, 1)))


@dataclass(frozen=True)
class Interval:
    """Numbers from ``least`` to ``most``, both included; None for no bound."""

    least: Decimal | None
    most: Decimal | None

    @property
    def empty(self) -> bool:
        """Whether no number can be written in it."""
        low = -_LARGEST - 1 if self.least is None else self.least
        high = _LARGEST + 1 if self.most is None else self.most
        return low > high or low > _LARGEST or high < -_LARGEST


def interval(
    whole: bool,
    minimum: float | None,
    maximum: float | None,
    above: float | None,
    below: float | None,
) -> Interval:
    """The numbers that all bounds allow: ``minimum`` and ``maximum`` themselves, ``above`` and ``below`` not.

    A text between the bounds is a double between them too: an exclusive bound is replaced by the next double, one
    that is no double by the nearest inside.
    """
    if whole:
        lows = [math.ceil(x) for x in (minimum,) if x is not None] + [
            math.floor(x) + 1 for x in (above,) if x is not None
        ]
        highs = [math.floor(x) for x in (maximum,) if x is not None] + [
            math.ceil(x) - 1 for x in (below,) if x is not None
        ]
        return Interval(Decimal(max(lows)) if lows else None, Decimal(min(highs)) if highs else None)
    least = [_inside(x, math.inf, False) for x in (minimum,) if x is not None]
    least += [_inside(x, math.inf, True) for x in (above,) if x is not None]
    most = [_inside(x, -math.inf, False) for x in (maximum,) if x is not None]
    most += [_inside(x, -math.inf, True) for x in (below,) if x is not None]
    return Interval(max(least) if least else None, min(most) if most else None)


def _inside(bound: float, towards: float, exclusive: bool) -> Decimal:
    """The nearest number to a bound that decimals can be compared with, ``towards`` where numbers are allowed."""
    try:
        double = float(bound)
    except OverflowError:  # an integer beyond all doubles
        return Decimal(bound)
    outside = double < bound if towards > 0 else double > bound
    if outside or (exclusive and double == bound):
        double = math.nextafter(double, towards)
    # large ones are integers, and compared as such: what repr rounds there would count
    return Decimal(double) if abs(double) >= 2**53 else Decimal(repr(double))


def bounded(whole: bool, within: Interval, budget: Budget, place: str) -> Machine:
    """Numbers of an interval, without exponents, at most 18 digits before the point."""
    least, most = within.least, within.most
    signs: list[Expression] = []
    if most is None or most >= 0:
        signs.append(_magnitudes(max(least, Decimal(0)) if least is not None else None, most, budget, place))
    if least is None or least <= 0:
        high = None if least is None else least.copy_abs()
        low = None if most is None else most.copy_abs() if most < 0 else Decimal(0)
        signs.append(sequence(literal("-"), _magnitudes(low, high, budget, place)))
    shape = any_number(whole).automaton
    return Machine(intersection(automaton(Alternation(tuple(signs)), budget), shape, budget, place))


def _magnitudes(low: Decimal | None, high: Decimal | None, budget: Budget, place: str) -> Expression:
    """Numbers without a sign from ``low`` to ``high``."""
    found = automaton(sequence(either(literal("0"), sequence(_digits("1", "9"), _ANY)), _FRACTION), budget)
    if low is not None and low > 0:
        found = intersection(found, automaton(_at_least(*_parts(low)), budget), budget, place)
    if high is not None:
        found = intersection(found, automaton(_at_most(*_parts(high)), budget), budget, place)
    return Machine(found)


def _parts(value: Decimal) -> tuple[str, str]:
    """The digits before the point, and those behind it without zeros at the end."""
    whole, _, fraction = format(value, "f").partition(".")
    return whole, fraction.rstrip("0")


def _digits(low: str, high: str) -> Expression:
    return CodePoints(((ord(low), ord(high)),)) if low <= high else CodePoints(())


def _at_least(whole: str, fraction: str) -> Expression:
    """Numbers without leading zeros that are at least ``whole.fraction``."""
    longer = sequence(Repetition(_DIGIT, len(whole) + 1), _FRACTION)
    larger = [
        sequence(literal(whole[:i]), _digits(chr(ord(c) + 1), "9"), _same(whole[i + 1 :]), _FRACTION)
        for i, c in enumerate(whole)
    ]
    behind = [sequence(literal(fraction[:i]), _digits(chr(ord(c) + 1), "9"), _ANY) for i, c in enumerate(fraction)]
    same: Expression = (
        _FRACTION if not fraction else sequence(literal("."), either(*behind, sequence(literal(fraction), _ANY)))
    )
    return either(longer, *larger, sequence(literal(whole), same))


def _at_most(whole: str, fraction: str) -> Expression:
    """Numbers without leading zeros that are at most ``whole.fraction``."""
    shorter = sequence(Repetition(_DIGIT, 1, len(whole) - 1), _FRACTION) if len(whole) > 1 else CodePoints(())
    smaller = [
        sequence(literal(whole[:i]), _digits("0", chr(ord(c) - 1)), _same(whole[i + 1 :]), _FRACTION)
        for i, c in enumerate(whole)
    ]
    zeros = Repetition(literal("0"))
    behind: list[Expression] = [
        sequence(literal(fraction[:i]), _digits("0", chr(ord(c) - 1)), _ANY) for i, c in enumerate(fraction)
    ]
    behind += [literal(fraction[:i]) for i in range(1, len(fraction))]
    behind.append(sequence(literal(fraction), zeros))
    return either(shorter, *smaller, sequence(literal(whole), optional(sequence(literal("."), either(*behind)))))


def _same(digits: str) -> Expression:
    """As many digits, any."""
    return Repetition(_DIGIT, len(digits), len(digits)) if digits else Concatenation(())


def multiples(of: int) -> Automaton:
    """Integers, as JSON writes them, that ``of`` divides; the remainder so far is the state."""
    # behind the remainders: the start, behind a sign, behind a single zero
    start, signed, zero = of, of + 1, of + 2
    table = np.full((of + 3, 12), -1, np.int32)  # atoms: other bytes, the sign, the digits
    table[start, 1] = signed
    for digit in range(10):
        table[:of, 2 + digit] = (np.arange(of) * 10 + digit) % of
        table[[start, signed], 2 + digit] = digit % of if digit else zero
    atom_of = np.zeros(256, np.int32)
    atom_of[ord("-")] = 1
    atom_of[ord("0") : ord("9") + 1] = np.arange(2, 12)
    accepting = np.zeros(of + 3, bool)
    accepting[[0, zero]] = True
    return minimal(Automaton(table, atom_of, {}, start, accepting))
