"""A deterministic automaton over bytes and control tokens, with as few states as its language allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Segments = list[tuple[int, int, int]]  # bytes from, bytes to (both included), the state that they lead to


@dataclass(frozen=True, eq=False)
class Automaton:
    """Which texts a grammar allows, byte by byte.

    Every state can still reach an accepting one, except the start of a language without texts.

    Args:
        table: ``[states, atoms]`` int32: the state that an atom leads to, -1 where it is refused.
        atom_of: ``[256]`` int32: the atom of each byte; bytes of one atom act alike on every state.
        tokens: the atoms of tokens that have no text, by their ids.
        start: the state before the first byte.
        accepting: ``[states]`` bool: the text may end here.
    """

    table: NDArray[np.int32]
    atom_of: NDArray[np.int32]
    tokens: Mapping[int, int]
    start: int
    accepting: NDArray[np.bool_]

    @property
    def states(self) -> int:
        """How many states there are."""
        return len(self.table)

    @property
    def empty(self) -> bool:
        """Whether no text at all is accepted."""
        return not self.accepting.any()

    def accepts(self, data: bytes) -> bool:
        """Whether these bytes are accepted as a whole."""
        state = self.start
        for byte in data:
            state = int(self.table[state, self.atom_of[byte]])
            if state < 0:
                return False
        return bool(self.accepting[state])

    @cached_property
    def segments(self) -> list[Segments]:
        """For each state the ranges of bytes that it accepts, and where they lead."""
        dense = self.table[:, self.atom_of]
        change = np.ones((len(dense), 257), bool)
        change[:, 1:256] = dense[:, 1:] != dense[:, :-1]
        found: list[Segments] = [[] for _ in range(len(dense))]
        states, edges = np.nonzero(change)
        for i in range(len(states) - 1):
            state, low, high = int(states[i]), int(edges[i]), int(edges[i + 1]) - 1
            if states[i + 1] == state and dense[state, low] >= 0:
                found[state].append((low, high, int(dense[state, low])))
        return found

    @cached_property
    def token_edges(self) -> list[Segments]:
        """For each state the tokens without text that it accepts, and where they lead."""
        return [
            [(token, token, int(row[atom])) for token, atom in self.tokens.items() if row[atom] >= 0]
            for row in self.table
        ]


def minimal(automaton: Automaton) -> Automaton:
    """The automaton of the same language with the fewest states, by partition refinement."""
    live = _live(automaton)
    if not live[automaton.start]:
        nothing = np.full((1, automaton.table.shape[1]), -1, np.int32)
        return Automaton(nothing, automaton.atom_of, automaton.tokens, 0, np.zeros(1, bool))
    # one more state, the dead one, so that every edge leads somewhere
    dead = automaton.states
    padded = np.append(live, False)
    table = np.where(padded[automaton.table], automaton.table, dead)
    table = np.vstack([table, np.full((1, table.shape[1]), dead)]).astype(np.int32)
    accepting = np.append(automaton.accepting, False)
    # states at different distances from acceptance are different: chains are told apart at once
    first = np.unique(_distance(automaton, accepting[:-1]), return_inverse=True)[1] + 1
    classes = np.append(np.where(live, first, 0), 0).astype(np.int32)
    return _quotient(automaton, table, accepting, _refined(table, classes))


def _refined(table: NDArray[np.int32], classes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Classes of states that no text tells apart, from classes that only they may share.

    States are looked at again only when a state that they lead to has a new name, and the largest part of a class
    keeps its name: a state changes its name at most as often as its class can be halved.
    """
    source, target = _edges(table)
    order = np.argsort(target, kind="stable")
    into = source[order]
    begin = np.searchsorted(target[order], np.arange(len(table) + 1))
    members: dict[int, set[int]] = {}
    for state, name in enumerate(classes.tolist()):
        members.setdefault(name, set()).add(state)
    looked = np.arange(len(table))
    while len(looked):
        renamed = []
        for name, parts in _parts(table, classes, looked).items():
            rest = len(members[name]) - sum(map(len, parts))  # those whose successors kept their names, all alike
            parts.sort(key=len)
            if rest < len(parts[-1]):
                largest = parts.pop()
                if rest:
                    parts.append(list(members[name].difference(largest, *parts)))
            for part in parts:
                new = len(members)
                members[new] = set(part)
                members[name].difference_update(part)
                classes[part] = new
                renamed += part
        looked = np.unique(np.concatenate([into[begin[x] : begin[x + 1]] for x in renamed])) if renamed else looked[:0]
    return classes


def _parts(
    table: NDArray[np.int32], classes: NDArray[np.int32], states: NDArray[np.int64]
) -> dict[int, list[list[int]]]:
    """Of each class those of its states that are among ``states``, by the classes that they lead to."""
    rows = np.ascontiguousarray(classes[table[states]])
    whole, step = rows.tobytes(), rows.shape[1] * rows.itemsize
    found: dict[tuple[int, bytes], list[int]] = {}
    for i, (state, name) in enumerate(zip(states.tolist(), classes[states].tolist(), strict=True)):
        found.setdefault((name, whole[i * step : (i + 1) * step]), []).append(state)
    parts: dict[int, list[list[int]]] = {}
    for (name, _), part in found.items():
        parts.setdefault(name, []).append(part)
    return parts


def _quotient(
    automaton: Automaton, table: NDArray[np.int32], accepting: NDArray[np.bool_], classes: NDArray[np.int32]
) -> Automaton:
    _, members, names = np.unique(classes, return_index=True, return_inverse=True)
    kept = np.arange(len(members)) != names[-1]
    number = np.full(len(members), -1, np.int32)
    number[kept] = np.arange(kept.sum())
    return Automaton(
        table=np.ascontiguousarray(number[names[table[members[kept]]]]),
        atom_of=automaton.atom_of,
        tokens=automaton.tokens,
        start=int(number[names[automaton.start]]),
        accepting=accepting[members[kept]],
    )


def _edges(table: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    ordered = np.sort(table, axis=1)
    new = ordered >= 0
    new[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    source, column = np.nonzero(new)
    return source, ordered[source, column].astype(np.int64)


def _live(automaton: Automaton) -> NDArray[np.bool_]:
    return _distance(automaton, automaton.accepting) < automaton.states


def _distance(automaton: Automaton, accepting: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Fewest atoms from each state to an accepting one; the number of states where there is no way."""
    source, target = _edges(automaton.table)
    return distances(source, target, accepting, far=automaton.states)


def distances(
    source: NDArray[np.int64], target: NDArray[np.int64], accepting: NDArray[np.bool_], far: int
) -> NDArray[np.int64]:
    """Fewest edges from each state to an accepting one, breadth first from there.

    Args:
        source: ``[edges]`` int64 states.
        target: ``[edges]`` int64: where the edges lead.
        accepting: ``[states]`` bool.
        far: what stands where there is no way.

    Returns:
        ``[states]`` int64.
    """
    states = len(accepting)
    order = np.argsort(target, kind="stable")
    into = source[order]
    start = np.searchsorted(target[order], np.arange(states + 1)).tolist()
    found = np.where(accepting, 0, far).astype(np.int64)
    frontier, length = np.flatnonzero(accepting).tolist(), 0
    reached = set(frontier)
    while frontier:
        length += 1
        following = []
        for state in frontier:
            for before in into[start[state] : start[state + 1]].tolist():
                if before not in reached:
                    reached.add(before)
                    found[before] = length
                    following.append(before)
        frontier = following
    return found
