"""A grammar over tokens: what the inference over canvases works with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FAR = 2**40  # a distance that no answer has


@dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """Which rows of tokens a grammar allows. The arrays are read-only.

    Every state can be reached from the start, and from every state an accepting one.

    Args:
        class_of: ``[vocabulary]`` int32: tokens that act alike on every state share a class; 0 leads nowhere.
        target: ``[classes, states]`` int32: the state a class leads to; -1 where it is refused. Row 0 is all -1.
        start: the state before the first token.
        accepting: ``[states]`` bool: the answer is complete here.
        distance: ``[states]`` int64: fewest tokens from here to an accepting state.
        end: the state behind the end of the answer, accepting: end tokens lead from every accepting state to it, and
            from it to itself; nothing else leaves it.
    """

    class_of: NDArray[np.int32]
    target: NDArray[np.int32]
    start: int
    accepting: NDArray[np.bool_]
    distance: NDArray[np.int64]
    end: int

    def __post_init__(self) -> None:
        for array in (self.class_of, self.target, self.accepting, self.distance):
            array.setflags(write=False)

    @cached_property
    def key(self) -> bytes:
        """The same for the same automaton, also in another process."""
        found = hashlib.sha256(f"{self.start} {self.end}".encode())
        for array in (self.class_of, self.target, self.accepting, self.distance):
            found.update(f"{array.shape}".encode())
            found.update(np.ascontiguousarray(array).data)
        return found.digest()

    @property
    def states(self) -> int:
        """How many states there are, the end among them."""
        return self.target.shape[1]

    @property
    def bytes(self) -> int:
        """Memory that the arrays take."""
        return self.class_of.nbytes + self.target.nbytes + self.accepting.nbytes + self.distance.nbytes

    def step(self, state: int, token: int) -> int:
        """The state that a token leads to; -1 where it is refused."""
        return int(self.target[self.class_of[token], state])
