"""An automaton laid out for inference: pairs of states, the sets of classes that join them, and their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trtllm_build.grammar.token_automaton import TokenAutomaton

# Tokens from which on a class is read chunk by chunk of the vocabulary; the logits of smaller classes are kept.
BULK = 1024
REFUSED = -1


@dataclass(frozen=True)
class Transitions:
    """What inference needs of an automaton, made once per grammar.

    States are walked over pairs (state, next state), sorted by state; the classes that lead from one to the other form
    a set, and few sets are distinct.

    Args:
        automaton: what it is made of.
        first: ``[states + 1]`` int64: the pairs of state q are ``first[q]`` up to ``first[q + 1]``.
        next: ``[pairs]`` int64, the state that a pair leads to.
        label: ``[pairs]`` int64, the set of classes that do.
        begin: ``[sets + 1]`` int64: the classes of set s are ``members[begin[s]:begin[s + 1]]``.
        members: int64, ascending in each set.
    """

    automaton: TokenAutomaton
    first: np.ndarray
    next: np.ndarray
    label: np.ndarray
    begin: np.ndarray
    members: np.ndarray

    @classmethod
    def of(cls, automaton: TokenAutomaton) -> Transitions:
        """Lay out an automaton."""
        classes, source = np.nonzero(automaton.target >= 0)
        target = automaton.target[classes, source]
        order = np.lexsort((classes, target, source))
        classes, source, target = classes[order], source[order], target[order]
        new = np.append(True, (source[1:] != source[:-1]) | (target[1:] != target[:-1]))
        starts = np.flatnonzero(new)
        sets: dict[bytes, int] = {}
        label = np.empty(len(starts), np.int64)
        found: list[np.ndarray] = []
        for index, members in enumerate(np.split(classes, starts[1:])):
            key = members.tobytes()
            if key not in sets:
                sets[key] = len(sets)
                found.append(members)
            label[index] = sets[key]
        states = automaton.target.shape[1]
        return cls(
            automaton,
            np.searchsorted(source[starts], np.arange(states + 1)).astype(np.int64),
            target[starts].astype(np.int64),
            label,
            np.cumsum([0, *(len(m) for m in found)]).astype(np.int64),
            np.concatenate(found).astype(np.int64),
        )

    @property
    def classes(self) -> int:
        """Number of classes, class 0 included."""
        return len(self.automaton.target)

    def advance(self, state: int, tokens: Sequence[int]) -> int:
        """The state that tokens lead to; :data:`REFUSED` when one of them is."""
        for token in tokens:
            if state == REFUSED:
                break
            state = int(self.automaton.target[self.automaton.class_of[token], state])
        return state

    @cached_property
    def few(self) -> np.ndarray:
        """Tokens of the classes that are not bulk, by class and then ascending; class 0 is left out."""
        order = np.argsort(self.automaton.class_of, kind="stable")
        classes = self.automaton.class_of[order]
        return order[(classes > 0) & ~self.is_bulk[classes]]

    @cached_property
    def few_begin(self) -> np.ndarray:
        """``[classes + 1]`` int64: tokens of class c in :attr:`few` are ``few_begin[c]`` up to ``few_begin[c + 1]``."""
        return np.searchsorted(self.automaton.class_of[self.few], np.arange(self.classes + 1)).astype(np.int64)

    @cached_property
    def is_bulk(self) -> np.ndarray:
        """``[classes]`` bool: read chunk by chunk. Class 0 always is: only the sum of all its weight is wanted."""
        found = np.bincount(self.automaton.class_of, minlength=self.classes) >= BULK
        found[0] = True
        return found

    @cached_property
    def bulk(self) -> dict[int, np.ndarray]:
        """Tokens, ascending, of every bulk class that has any."""
        found = {int(c): np.flatnonzero(self.automaton.class_of == c) for c in np.flatnonzero(self.is_bulk)}
        return {c: tokens for c, tokens in found.items() if len(tokens)}
