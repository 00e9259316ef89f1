"""A grammar over tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenAutomaton:
    """A deterministic automaton whose symbols are classes of tokens that act alike.

    Args:
        class_of: ``[vocab]`` int32, the class of each token; 0: leads nowhere from any state.
        target: ``[classes, states]`` int32, the state that a class leads to; -1: refused there. Row 0 is all -1.
        start: state before the first token.
        accepting: ``[states]`` bool, the answer is complete here.
        distance: ``[states]`` int64, fewest tokens from here to an accepting state.
        end: state behind the end of the answer; end tokens lead to it, and from it to itself.
    """

    class_of: np.ndarray
    target: np.ndarray
    start: int
    accepting: np.ndarray
    distance: np.ndarray
    end: int
