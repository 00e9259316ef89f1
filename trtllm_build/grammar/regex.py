"""Regular expressions in Python's syntax, as read by Python's own parser; what is not regular is refused by name."""

from __future__ import annotations

import re
import warnings
from functools import cache
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from nemo_diffgemma.errors import FieldError
from trtllm_build.grammar.code_points import characters, complement, union, without
from trtllm_build.grammar.expressions import (
    EMPTY,
    Alternation,
    CodePoints,
    Concatenation,
    Expression,
    Ranges,
    Repetition,
)

# Classes mean what both Python and ECMAScript mean: a text that is accepted here is accepted by either.
_DIGITS: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_LINE_ENDS = characters("\n\r\u2028\u2029")
_SPACE = union(((9, 13), (0x2000, 0x200A), *characters(" \u00a0\u1680\u2028\u2029\u202f\u205f\u3000")))
_SPACE_OF_ONE = characters("\x1c\x1d\x1e\x1f\x85\ufeff")  # space to one of them only
_ALL: Ranges = ((0, 0x10FFFF),)
# Python's words have letters of all scripts; a text that \W matches is of these, which are none to either
_PLAIN: Ranges = ((0, 0x7F), (0x2010, 0x2027), (0x2030, 0x203E))
_CATEGORIES: dict[Any, Ranges] = {
    op.CATEGORY_DIGIT: _DIGITS,
    op.CATEGORY_WORD: _WORD,
    op.CATEGORY_SPACE: _SPACE,
    op.CATEGORY_NOT_WORD: without(_PLAIN, _WORD),
    op.CATEGORY_NOT_SPACE: complement((*_SPACE, *_SPACE_OF_ONE)),
}
# what a class leaves out when it is negated: whatever either of the two takes for one of it
_WIDEST: dict[Any, Ranges] = {
    op.CATEGORY_WORD: complement(_CATEGORIES[op.CATEGORY_NOT_WORD]),
    op.CATEGORY_SPACE: union((*_SPACE, *_SPACE_OF_ONE)),
    op.CATEGORY_NOT_DIGIT: complement(_DIGITS),
    op.CATEGORY_NOT_WORD: complement(_WORD),
    op.CATEGORY_NOT_SPACE: complement(_SPACE),
}
_OPPOSITES = (
    (op.CATEGORY_DIGIT, op.CATEGORY_NOT_DIGIT),
    (op.CATEGORY_WORD, op.CATEGORY_NOT_WORD),
    (op.CATEGORY_SPACE, op.CATEGORY_NOT_SPACE),
)
_REFUSED: dict[Any, str] = {
    op.ASSERT: "look-ahead and look-behind",
    op.ASSERT_NOT: "negative look-ahead and look-behind",
    op.GROUPREF: "references to groups",
    op.GROUPREF_EXISTS: "conditions on groups",
    op.ATOMIC_GROUP: "atomic groups",
    op.POSSESSIVE_REPEAT: "possessive repetitions",
}
_BEGIN = (op.AT_BEGINNING, op.AT_BEGINNING_STRING)
_END = (op.AT_END, op.AT_END_STRING)
_FLAGS = {re.IGNORECASE: "(?i)", re.MULTILINE: "(?m)", re.LOCALE: "(?L)"}


def regex(pattern: str, field: str, anywhere: bool = False) -> Expression:
    """A regular expression that a whole text matches.

    ``\\d``, ``\\w`` and ``\\s`` are those of ASCII and of both Python's and ECMAScript's spaces, ``.`` is no line end.
    ``^`` and ``$`` may stand only where the text begins and ends.

    Args:
        pattern: in Python's syntax.
        field: what an error names.
        anywhere: the text may have more before and behind, except where ``^`` and ``$`` stand, as in a JSON Schema.

    Raises:
        FieldError: for what is no regular expression, or not regular.
    """
    return _Reader(pattern, field, anywhere).read()


class _Reader:
    def __init__(self, pattern: str, field: str, anywhere: bool):
        self._pattern, self._field = pattern, field
        self._more: Expression = Repetition(CodePoints(_ALL)) if anywhere else EMPTY
        self._any: Ranges = complement(_LINE_ENDS)

    def read(self) -> Expression:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = parser.parse(self._pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise self._error(f"a regular expression; this one cannot be read: {error}", "correct it") from error
        self._check_flags(found.state.flags)
        if found.state.flags & re.DOTALL:
            self._any = _ALL
        return self._sequence(list(found), begins=True, ends=True)

    def _error(self, allowed: str, fix: str = "write it without") -> FieldError:
        return FieldError(field=self._field, value=self._pattern, allowed=allowed, fix=fix)

    def _check_flags(self, flags: int) -> None:
        for flag, name in _FLAGS.items():
            if flags & flag:
                raise self._error(f"a regular expression without {name}")

    def _sequence(self, items: list[Any], begins: bool, ends: bool) -> Expression:
        """Items in a row.

        Args:
            items: of Python's parser.
            begins: nothing of the pattern stands before them.
            ends: nothing of the pattern stands behind them.
        """
        before: Expression = EMPTY
        behind: Expression = EMPTY
        if begins:
            before, items = self._edge(items, _BEGIN, first=True)
        if ends:
            behind, items = self._edge(items, _END, first=False)
        # a group at the edge sees to what may stand there itself
        last = len(items) - 1
        parts = []
        for i, (code, value) in enumerate(items):
            at_start = begins and i == 0 and before is _INNER
            at_end = ends and i == last and behind is _INNER
            parts.append(self._item(code, value, at_start, at_end))
        return Concatenation((before, *parts, behind))

    def _edge(self, items: list[Any], anchors: tuple[Any, ...], first: bool) -> tuple[Expression, list[Any]]:
        """What may stand at one end of a sequence, and the sequence without its anchor there."""
        anchored = False
        while items and items[0 if first else -1][0] is op.AT and items[0 if first else -1][1] in anchors:
            items, anchored = items[1:] if first else items[:-1], True
        if anchored:
            return EMPTY, items
        if items and items[0 if first else -1][0] in (op.BRANCH, op.SUBPATTERN):
            return _INNER, items
        return self._more, items

    def _item(self, code: Any, value: Any, begins: bool, ends: bool) -> Expression:
        if code is op.LITERAL:
            return CodePoints(((value, value),))
        if code is op.NOT_LITERAL:
            return CodePoints(complement(((value, value),)))
        if code is op.ANY:
            return CodePoints(self._any)
        if code is op.IN:
            return CodePoints(_class(value))
        if code is op.BRANCH:
            return Alternation(tuple(self._sequence(list(branch), begins, ends) for branch in value[1]))
        if code is op.SUBPATTERN:
            return self._group(value, begins, ends)
        if code in (op.MAX_REPEAT, op.MIN_REPEAT):
            least, most, item = value
            inner = self._sequence(list(item), begins=False, ends=False)
            return Repetition(inner, least, None if most is op.MAXREPEAT else most)
        if code is op.AT and value in (*_BEGIN, *_END):
            raise self._error("^ where the text begins and $ where it ends, and neither of them repeated")
        if code is op.AT:
            raise self._error(r"a regular expression without \b and \B")
        raise self._error(f"a regular expression without {_REFUSED.get(code, str(code).lower())}: it must be regular")

    def _group(self, value: Any, begins: bool, ends: bool) -> Expression:
        _, added, removed, inner = value
        self._check_flags(added)
        before = self._any
        if added & re.DOTALL:
            self._any = _ALL
        if removed & re.DOTALL:
            self._any = complement(_LINE_ENDS)
        found = self._sequence(list(inner), begins, ends)
        self._any = before
        return found


_INNER = Concatenation(())  # stands for "what is inside decides"; says nothing itself


def _class(items: list[Any]) -> Ranges:
    """The characters of ``[...]``."""
    negated = items[0][0] is op.NEGATE
    categories = {value for code, value in items if code is op.CATEGORY}
    if any(a in categories and b in categories for a, b in _OPPOSITES):
        return () if negated else _ALL  # whatever the two mean, together they are everything
    ranges: list[tuple[int, int]] = []
    for code, value in items:
        if code is op.LITERAL:
            ranges.append((value, value))
        elif code is op.RANGE:
            ranges.append(value)
        elif code is op.CATEGORY:
            ranges += _category(value, negated)
    return complement(ranges) if negated else union(ranges)


def _category(value: Any, negated: bool) -> Ranges:
    """What a class like ``\\d`` adds to ``[...]`` or, negated, takes away."""
    if value is op.CATEGORY_DIGIT and negated:
        return _digits_of_all_scripts()
    if value is op.CATEGORY_NOT_DIGIT and not negated:
        return complement(_digits_of_all_scripts())
    return (_WIDEST if negated else _CATEGORIES)[value]


@cache
def _digits_of_all_scripts() -> Ranges:
    return union((point, point) for point in range(0x110000) if chr(point).isdecimal())
