"""A nondeterministic automaton becomes a deterministic one: the subset construction."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trtllm_build.grammar.automaton import Automaton, minimal
from trtllm_build.grammar.budget import Budget
from trtllm_build.grammar.expressions import Expression
from trtllm_build.grammar.nfa import FIRST_TOKEN, Nondeterministic

Moves = list[tuple[int, int, int]]  # atoms from, to (the second excluded), and where they lead


def automaton(expression: Expression, budget: Budget) -> Automaton:
    """The smallest automaton of an expression.

    Raises:
        FieldError: when it takes too many states or too long.
    """
    source = Nondeterministic(expression, budget)
    atom_of, tokens = _atoms(source)
    moves = [
        [
            (tokens[low - FIRST_TOKEN], tokens[low - FIRST_TOKEN] + 1, to)
            if low >= FIRST_TOKEN
            else (int(atom_of[low]), int(atom_of[high]) + 1, to)
            for low, high, to in edges
        ]
        for edges in source.edges
    ]
    closures = _Closures(source, moves, budget)
    first = closures.of(source.start)
    number, order = {first: 0}, [first]
    known: dict[tuple[int, ...], int] = {}  # by what a symbol leads to, sorted
    rows: list[Moves] = []
    for subset in order:  # which grows meanwhile
        row: Moves = []
        for low, high, targets in _merged([move for state in subset for move in moves[state]]):
            to = known.get(targets)
            if to is None:
                whole = closures.of_all(targets)
                to = number.setdefault(whole, len(order))
                if to == len(order):
                    order.append(whole)
                known[targets] = to
            row.append((low, high, to))
        rows.append(row)
        budget.check_states(len(order), source.largest_place)
    budget.check_states(len(order), source.largest_place)
    table = np.full((len(rows), int(atom_of.max()) + 1 + len(tokens)), -1, np.int32)
    for i, row in enumerate(rows):
        for low, high, to in row:
            table[i, low:high] = to
    accepting = np.array([source.end in subset for subset in order])
    found = minimal(Automaton(table, atom_of, tokens, 0, accepting))
    budget.check_time(source.largest_place)
    return found


def _atoms(source: Nondeterministic) -> tuple[NDArray[np.int32], dict[int, int]]:
    """Bytes that no edge tells apart share an atom; each token has its own, behind them."""
    cuts, tokens = np.zeros(257, np.int32), set()
    for edges in source.edges:
        for low, high, _ in edges:
            if low >= FIRST_TOKEN:
                tokens.add(low - FIRST_TOKEN)
            else:
                cuts[low] = cuts[high + 1] = 1
    cuts[0] = 0
    atom_of = np.cumsum(cuts[:256]).astype(np.int32)
    return atom_of, {token: int(atom_of[255]) + 1 + i for i, token in enumerate(sorted(tokens))}


def _merged(moves: Moves) -> list[tuple[int, int, tuple[int, ...]]]:
    """The same moves over ranges of atoms that do not overlap, each with all that it leads to, sorted."""
    moves.sort()
    if all(a[1] <= b[0] for a, b in pairwise(moves)):
        return [(low, high, (to,)) for low, high, to in moves]
    targets: dict[int, set[int]] = {}
    for low, high, to in moves:
        for atom in range(low, high):
            targets.setdefault(atom, set()).add(to)
    return [(atom, atom + 1, tuple(sorted(to))) for atom, to in targets.items()]


class _Closures:
    """What is reached for free from a state: only states that read something, and the end."""

    def __init__(self, source: Nondeterministic, moves: list[Moves], budget: Budget):
        self._source, self._moves, self._budget = source, moves, budget
        self._known: dict[int, frozenset[int]] = {}

    def of(self, state: int) -> frozenset[int]:
        found = self._known.get(state)
        if found is None:
            self._budget.check_time(self._source.largest_place)
            seen, stack = {state}, [state]
            while stack:
                for following in self._source.free[stack.pop()]:
                    if following not in seen:
                        seen.add(following)
                        stack.append(following)
            found = frozenset(x for x in seen if self._moves[x] or x == self._source.end)
            self._known[state] = found
        return found

    def of_all(self, states: tuple[int, ...]) -> frozenset[int]:
        return self.of(states[0]) if len(states) == 1 else frozenset().union(*map(self.of, states))
