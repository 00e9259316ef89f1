"""How JSON is written: strings, whitespace, values that are known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from nemo_diffgemma.errors import FieldError, require
from trtllm_build.grammar.budget import Budget
from trtllm_build.grammar.code_points import characters, complement, contains, without
from trtllm_build.grammar.determinise import automaton
from trtllm_build.grammar.expressions import (
    EMPTY,
    CodePoints,
    Expression,
    Literal,
    Loop,
    Machine,
    Ranges,
    Repetition,
    either,
    literal,
    optional,
    sequence,
)

_SHORT = {ord(c): json.dumps(c)[1:-1].encode() for c in '"\\\b\f\n\r\t'}
_ESCAPED: Ranges = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
_HEX = characters("0123456789abcdefABCDEF")


def character(ranges: Ranges) -> Expression:
    """One character of a string of these ranges, spelled one way: as it is, or with the shortest escape.

    Control characters that have no short escape are left out: no text of use has them.
    """
    short = [Literal(text) for point, text in _SHORT.items() if contains(ranges, point)]
    return either(CodePoints(without(ranges, _ESCAPED)), *short)


EVERY_CHARACTER: Ranges = ((0, 0x10FFFF),)


def quoted(content: Expression) -> Expression:
    """A string with this content."""
    return sequence(literal('"'), content, literal('"'))


def _any_way() -> Expression:
    not_surrogate = either(
        sequence(CodePoints(without(_HEX, characters("dD"))), CodePoints(_HEX)),
        sequence(CodePoints(characters("dD")), CodePoints(characters("01234567"))),
    )
    escape = sequence(
        literal("\\"),
        either(
            CodePoints(characters('"\\/bfnrt')),
            sequence(literal("u"), not_surrogate, Repetition(CodePoints(_HEX), 2, 2)),
        ),
    )
    return either(CodePoints(complement(_ESCAPED)), escape)


ANY_WAY = _any_way()  # any character: as it is, with a short escape, as \uXXXX but for surrogates


@cache
def any_string() -> Machine:
    """Any string, each character spelled in any way."""
    return _machine(quoted(Repetition(ANY_WAY)))


@cache
def any_number(whole: bool) -> Machine:
    """Any integer of at most 18 digits; unless ``whole``, with a fraction and an exponent that no double exceeds."""
    digit = CodePoints(characters("0123456789"))
    from_one = sequence(CodePoints(characters("123456789")), Repetition(digit, 0, 17))
    minus = optional(literal("-"))
    # no integer is -0: readers of unsigned integers and those that make a float of it would not take it
    number = (
        either(literal("0"), sequence(minus, from_one)) if whole else sequence(minus, either(literal("0"), from_one))
    )
    if not whole:
        few = Repetition(digit, 1, 2)
        up = either(
            few,
            sequence(literal("1"), digit, digit),
            sequence(literal("2"), CodePoints(characters("012345678")), digit),
        )
        exponent = either(sequence(optional(literal("+")), up), sequence(literal("-"), Repetition(digit, 1, 3)))
        fraction = sequence(literal("."), Repetition(digit, 1))
        number = sequence(number, optional(fraction), optional(sequence(CodePoints(characters("eE")), exponent)))
    return _machine(number)


def _machine(expression: Expression) -> Machine:
    return Machine(automaton(expression, Budget("grammar", "a constant", seconds=60)))


@dataclass(frozen=True)
class Spacing:
    """The whitespace between the tokens of JSON.

    Args:
        comma: a comma with its whitespace.
        colon: a colon with its whitespace.
        inside: what may stand inside brackets, next to them.
    """

    comma: Expression
    colon: Expression
    inside: Expression

    def wrapped(self, brackets: str, content: Expression) -> Expression:
        """``content`` in brackets (``"[]"``)."""
        return sequence(literal(brackets[0]), self.inside, content, self.inside, literal(brackets[1]))

    def pair(self, key: Expression, value: Expression) -> Expression:
        """A key and its value."""
        return sequence(key, self.colon, value)

    def listed(self, items: Sequence[Expression]) -> Expression:
        """Exactly these items."""
        found: list[Expression] = []
        for item in items:
            found += [self.comma, item] if found else [item]
        return sequence(*found)

    def repeated(self, item: Expression) -> Expression:
        """No item, or some."""
        return optional(Loop(item, self.comma))


_WHITE = Repetition(CodePoints(characters(" \t\n\r")))
SPACINGS = {
    "spaced": Spacing(literal(", "), literal(": "), EMPTY),  # as json.dumps does
    "compact": Spacing(literal(","), literal(":"), EMPTY),
    "flexible": Spacing(sequence(_WHITE, literal(","), _WHITE), sequence(_WHITE, literal(":"), _WHITE), _WHITE),
}


def scalar(value: Any, field: str) -> Expression:
    """A string, a number, true, false or null that is known.

    Raises:
        FieldError: for what JSON cannot say (NaN, lone surrogates).
    """
    finite = not isinstance(value, float) or math.isfinite(value)
    require(finite, field=field, value=value, allowed="a finite number", fix="leave it out")
    try:
        return literal(json.dumps(value, ensure_ascii=False))
    except UnicodeEncodeError as error:
        raise FieldError(
            field=field, value=value, allowed="text that UTF-8 can write: no lone surrogates", fix="correct the text"
        ) from error
    except TypeError as error:
        raise FieldError(field=field, value=value, allowed="a value of JSON", fix="write it as JSON") from error
