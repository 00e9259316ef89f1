"""An expression becomes a nondeterministic automaton: Thompson's construction."""

from __future__ import annotations

from collections import Counter

from trtllm_build.grammar.budget import Budget
from trtllm_build.grammar.expressions import (
    Alternation,
    CodePoints,
    Concatenation,
    Expression,
    Literal,
    Loop,
    Machine,
    Named,
    Repetition,
    Series,
    Token,
)
from trtllm_build.grammar.utf8 import Row, byte_rows

FIRST_TOKEN = 256  # symbols below are bytes, this and above tokens


class Nondeterministic:
    """States with edges over ranges of symbols, and edges that read nothing.

    Args:
        expression: what it accepts.
        budget: what it may cost.

    Raises:
        FieldError: when the expression is too long.
    """

    def __init__(self, expression: Expression, budget: Budget):
        self.free: list[list[int]] = []
        self.edges: list[list[tuple[int, int, int]]] = []  # symbols from, to (both included), and where they lead
        self._budget = budget
        self._open: list[tuple[str, int]] = []  # parts that are being added, and how many states there were before
        self._sizes: Counter[str] = Counter()
        self.start = self._new()
        self.end = self._add(expression, self.start)

    def largest_place(self) -> str:
        """The narrowest named part that makes up more than half of all states; empty when there is none."""
        sizes = self._sizes + Counter({place: len(self.free) - before for place, before in self._open})
        big = [place for place, size in sizes.items() if size * 2 > len(self.free)]
        return max(big, key=len, default="")

    def _new(self) -> int:
        self.free.append([])
        self.edges.append([])
        if len(self.free) % 512 == 0:
            self._budget.check_pieces(len(self.free), self.largest_place)
        return len(self.free) - 1

    def _add(self, expression: Expression, at: int) -> int:
        """Add an expression that begins at a state; the state where it ends."""
        match expression:
            case Literal(data):
                for byte in data:
                    at = self._edge(at, byte, byte)
                return at
            case Token(number):
                return self._edge(at, FIRST_TOKEN + number, FIRST_TOKEN + number)
            case CodePoints(ranges):
                return self._characters(byte_rows(ranges), at)
            case Concatenation(parts):
                for part in parts:
                    at = self._add(part, at)
                return at
            case Alternation(parts):
                end = self._new()
                for part in parts:
                    self.free[self._add(part, self._after(at))].append(end)
                return end
            case Repetition(item, least, most):
                return self._repeat(item, least, most, at)
            case Loop(item, separator):
                begin = self._after(at)
                last = self._add(item, begin)
                self.free[self._add(separator, self._after(last))].append(begin)
                return self._after(last)
            case Series(items, separator):
                return self._series(items, separator, at)
            case Machine(automaton):
                base = len(self.free)
                for bytes_, tokens in zip(automaton.segments, automaton.token_edges, strict=True):
                    state = self._new()
                    shifted = [(FIRST_TOKEN + low, FIRST_TOKEN + high, to) for low, high, to in tokens]
                    self.edges[state] = [(low, high, base + to) for low, high, to in (*bytes_, *shifted)]
                self.free[at].append(base + automaton.start)
                end = self._new()
                for state in automaton.accepting.nonzero()[0].tolist():
                    self.free[base + state].append(end)
                return end
            case Named(place, item):
                self._open.append((place, len(self.free)))
                end = self._add(item, at)
                self._sizes[place] += len(self.free) - self._open.pop()[1]
                return end
        raise TypeError(f"no expression: {type(expression).__name__}")

    def _edge(self, at: int, low: int, high: int) -> int:
        self.edges[at].append((low, high, self._new()))
        return len(self.free) - 1

    def _after(self, at: int) -> int:
        """A new state that is reached from ``at`` for free."""
        self.free[at].append(self._new())
        return len(self.free) - 1

    def _characters(self, rows: tuple[Row, ...], at: int) -> int:
        # rows that end alike share their ends: what counts is how many bytes of which ranges are still to come
        end = self._new()
        states: dict[Row, int] = {(): end}
        for row in rows:
            for i in range(len(row) - 1, 0, -1):
                if row[i:] not in states:
                    states[row[i:]] = self._new()
                    self.edges[states[row[i:]]].append((*row[i], states[row[i + 1 :]]))
            self.edges[at].append((*row[0], states[row[1:]]))
        return end

    def _repeat(self, item: Expression, least: int, most: int | None, at: int) -> int:
        for _ in range(least):
            at = self._add(item, at)
        if most is None:
            begin = self._after(at)
            self.free[self._add(item, self._after(begin))].append(begin)
            return self._after(begin)
        end = self._new()
        self.free[at].append(end)
        for _ in range(most - least):
            at = self._add(item, self._after(at))
            self.free[at].append(end)
        return end

    def _series(self, items: tuple[tuple[Expression, bool], ...], separator: Expression, at: int) -> int:
        """Each item once, whatever may be left out: where nothing stands before it, and where something does."""
        nothing, something = self._after(at), self._new()
        for item, needed in items:
            begin, next_nothing, next_something = self._new(), self._new(), self._new()
            self.free[nothing].append(begin)
            self.free[self._add(separator, self._after(something))].append(begin)
            self.free[self._add(item, begin)].append(next_something)
            if not needed:
                self.free[nothing].append(next_nothing)
                self.free[something].append(next_something)
            nothing, something = next_nothing, next_something
        end = self._new()
        self.free[nothing].append(end)
        self.free[something].append(end)
        return end
