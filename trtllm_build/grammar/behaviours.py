"""What tokens do to states: rows of moves from a state to a state, most of them short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Behaviours:
    """For each behaviour where it leads the states that it does not refuse.

    Args:
        begins: ``[behaviours + 1]`` int64: where in ``moves`` each one begins; the last number is where all end.
        moves: ``[moves]`` uint32: a state in the upper half, in order, and the state that it leads to in the lower.
    """

    begins: Integers
    moves: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.begins) - 1

    @property
    def states(self) -> Integers:
        """``[moves]`` int64: where each move starts."""
        return (self.moves >> 16).astype(np.int64)

    @property
    def targets(self) -> Integers:
        """``[moves]`` int64: where each move leads."""
        return (self.moves & 0xFFFF).astype(np.int64)

    @property
    def owners(self) -> Integers:
        """``[moves]`` int64: the behaviour that each move is of."""
        return np.repeat(np.arange(len(self)), np.diff(self.begins))

    def chosen(self, which: Integers) -> Behaviours:
        """These behaviours, in this order; one may come more than once."""
        lengths = self.begins[which + 1] - self.begins[which]
        begins = np.append(0, np.cumsum(lengths))
        places = np.arange(begins[-1]) + np.repeat(self.begins[which] - begins[:-1], lengths)
        return Behaviours(begins, self.moves[places])

    def kept(self, good: NDArray[np.bool_], states: Integers, targets: Integers) -> Behaviours:
        """The moves that are ``good``, from these states to these targets; states keep their order."""
        begins = np.append(0, np.cumsum(good))[self.begins]
        return Behaviours(begins, (states[good] << 16 | targets[good]).astype(np.uint32))


def of_rows(rows: Sequence[NDArray[np.int32]]) -> Behaviours:
    """Behaviours of rows ``[states]`` of targets, -1 where a state is refused. At least one row."""
    table = np.stack(rows).astype(np.int64)
    owners, states = np.nonzero(table >= 0)
    begins = np.searchsorted(owners, np.arange(len(table) + 1))
    return Behaviours(begins, (states << 16 | table[owners, states]).astype(np.uint32))


def joined(parts: Sequence[Behaviours]) -> Behaviours:
    """All of these, one after the other."""
    lengths = np.concatenate([np.diff(part.begins) for part in parts])
    return Behaviours(np.append(0, np.cumsum(lengths)), np.concatenate([part.moves for part in parts]))


class Interned:
    """Numbers of behaviours in the order in which they come, the same for equal ones; 0 refuses everything."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {b"": 0}

    def number(self, found: Behaviours) -> tuple[Integers, Integers]:
        """The number of each behaviour, and the indices of those that are new."""
        known, fresh = self._known, []
        whole, begins = found.moves.tobytes(), (found.begins * found.moves.itemsize).tolist()
        numbers = np.empty(len(found), np.int64)
        for i in range(len(found)):
            key = whole[begins[i] : begins[i + 1]]
            number = known.get(key)
            if number is None:
                number = known[key] = len(known)
                fresh.append(i)
            numbers[i] = number
        return numbers, np.array(fresh, np.int64)
