"""How values are written down: as JSON, or as a model's tool calls have them (:mod:`trtllm_build.grammar.tools`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from trtllm_build.grammar.budget import Budget
from trtllm_build.grammar.determinise import automaton
from trtllm_build.grammar.expressions import (
    Alternation,
    Expression,
    Machine,
    Ranges,
    Repetition,
    either,
    literal,
    translate,
)
from trtllm_build.grammar.json_text import (
    ANY_WAY,
    EVERY_CHARACTER,
    SPACINGS,
    Spacing,
    any_number,
    any_string,
    character,
    quoted,
    scalar,
)
from trtllm_build.grammar.products import difference


class Notation(ABC):
    """What differs between the ways to write values; equal ones are interchangeable."""

    style: Spacing

    @abstractmethod
    def character(self, ranges: Ranges) -> Expression:
        """One character of a string, out of these, spelled one way."""

    @abstractmethod
    def quoted(self, content: Expression) -> Expression:
        """A string with this content."""

    @abstractmethod
    def any_string(self, least: int) -> Expression:
        """Any string of at least so many characters."""

    @abstractmethod
    def scalar(self, value: Any, field: str) -> Expression:
        """A string, number, true, false or null that is known. Raises FieldError for one that cannot be written."""

    @abstractmethod
    def key(self, name: str, field: str) -> Expression:
        """A key. Raises FieldError for one that cannot be written."""

    @abstractmethod
    def other_keys(self, names: Sequence[str], budget: Budget, place: str) -> Expression:
        """Any key but these."""

    @abstractmethod
    def ordered(self, names: Iterable[str]) -> list[str]:
        """Keys in the order in which they are written."""

    def inside(self, expression: Expression) -> Expression:
        """What an expression over characters is inside of a string."""
        return translate(expression, self.character)

    def known(self, value: Any, field: str) -> Expression:
        """A value that is known.

        Raises:
            FieldError: for what cannot be written (NaN, lone surrogates).
        """
        if isinstance(value, list):
            return self.style.wrapped("[]", self.style.listed([self.known(item, field) for item in value]))
        if isinstance(value, dict):
            pairs = [
                self.style.pair(self.key(name, field), self.known(value[name], field)) for name in self.ordered(value)
            ]
            return self.style.wrapped("{}", self.style.listed(pairs))
        return self.scalar(value, field)

    def anything(self, depth: int) -> Machine:
        """Any value, with arrays and objects at most ``depth`` deep in each other."""
        return _anything(self, depth)

    def any_array(self, item: Expression) -> Expression:
        """An array of any number of items."""
        return self.style.wrapped("[]", self.style.repeated(item))

    def any_object(self, value: Expression) -> Expression:
        """An object of any number of values under any keys."""
        key = self.other_keys((), Budget("grammar", "any key"), "")
        return self.style.wrapped("{}", self.style.repeated(self.style.pair(key, value)))


@cache
def _anything(notation: Notation, depth: int) -> Machine:
    parts = [notation.any_string(0), any_number(False), *map(literal, ("true", "false", "null"))]
    if depth > 0:
        inner = notation.anything(depth - 1)
        parts += [notation.any_array(inner), notation.any_object(inner)]
    return Machine(automaton(either(*parts), Budget("grammar", "any value", seconds=60)))


class JsonNotation(Notation):
    """JSON, with one of :data:`SPACINGS`."""

    def __init__(self, spacing: str):
        self.spacing = spacing
        self.style = SPACINGS[spacing]

    def character(self, ranges: Ranges) -> Expression:
        return character(ranges)

    def quoted(self, content: Expression) -> Expression:
        return quoted(content)

    def any_string(self, least: int) -> Expression:
        return quoted(Repetition(ANY_WAY, least)) if least else any_string()

    def scalar(self, value: Any, field: str) -> Expression:
        return scalar(value, field)

    def key(self, name: str, field: str) -> Expression:
        return scalar(name, field)

    def other_keys(self, names: Sequence[str], budget: Budget, place: str) -> Expression:
        if not names:
            return any_string()
        # each spelled one way, so that no escape hides one of the names
        every = automaton(quoted(Repetition(character(EVERY_CHARACTER))), budget)
        taken = automaton(Alternation(tuple(scalar(name, place) for name in names)), budget)
        return Machine(difference(every, taken, budget, place))

    def ordered(self, names: Iterable[str]) -> list[str]:
        return list(names)


JSON = {spacing: JsonNotation(spacing) for spacing in SPACINGS}
