"""Texts that two automata accept, or the one and not the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from trtllm_build.grammar.automaton import Automaton, minimal
from trtllm_build.grammar.budget import Budget

Bools = NDArray[np.bool_]


def intersection(a: Automaton, b: Automaton, budget: Budget, place: str = "") -> Automaton:
    """The texts of both.

    Raises:
        FieldError: when it takes too many states or too long; the error names ``place``.
    """
    return _product(a, b, budget, place, lambda x, y: x & y)


def difference(a: Automaton, b: Automaton, budget: Budget, place: str = "") -> Automaton:
    """The texts of ``a`` that are none of ``b``'s.

    Raises:
        FieldError: when it takes too many states or too long; the error names ``place``.
    """
    whole = Automaton(  # one more state, where every other text of b ends
        table=np.vstack([np.where(b.table < 0, b.states, b.table), np.full((1, b.table.shape[1]), b.states)]),
        atom_of=b.atom_of,
        tokens=b.tokens,
        start=b.start,
        accepting=np.append(b.accepting, False),
    )
    return _product(a, whole, budget, place, lambda x, y: x & ~y)


def _product(
    a: Automaton, b: Automaton, budget: Budget, place: str, accept: Callable[[Bools, Bools], Bools]
) -> Automaton:
    """Pairs of states that the same text leads to. Both are over bytes only."""
    assert not a.tokens
    assert not b.tokens
    pairs, atom_of = np.unique(a.atom_of.astype(np.int64) * b.table.shape[1] + b.atom_of, return_inverse=True)
    left, right = a.table[:, pairs // b.table.shape[1]], b.table[:, pairs % b.table.shape[1]]
    number = {(a.start, b.start): 0}
    order, rows = [(a.start, b.start)], []
    for x, y in order:  # which grows meanwhile
        row = []
        for p, q in zip(left[x].tolist(), right[y].tolist(), strict=True):
            if p < 0 or q < 0:
                row.append(-1)
                continue
            to = number.setdefault((p, q), len(order))
            if to == len(order):
                order.append((p, q))
            row.append(to)
        rows.append(row)
        if len(rows) % 64 == 0:
            budget.check_states(len(order), place)
    states = np.array(order)
    accepting = accept(a.accepting[states[:, 0]], b.accepting[states[:, 1]])
    return minimal(Automaton(np.array(rows, np.int32), atom_of.astype(np.int32), {}, 0, accepting))
