"""An automaton laid out for inference: pairs of states, the sets of classes that join them, and their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trtllm_build.grammar.token_automaton import TokenAutomaton

# Tokens from which on a class is read chunk by chunk of the vocabulary; the logits of smaller classes are kept.
BULK = 1024
REFUSED = -1
Integers = NDArray[np.int64]


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
        few: int64, tokens of small classes, by class and then ascending; those of class 0 are left out.
        few_begin: ``[classes + 1]`` int64: those of class c are ``few_begin[c]`` up to ``few_begin[c + 1]``.
        bulk: tokens, ascending int64, of every class that is read chunk by chunk of the vocabulary. Class 0 is, if it
            has tokens: only the sum of all their weight is wanted.
    """

    automaton: TokenAutomaton
    first: Integers
    next: Integers
    label: Integers
    begin: Integers
    members: Integers
    few: Integers
    few_begin: Integers
    bulk: dict[int, Integers]

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
        found: list[Integers] = []
        for index, members in enumerate(np.split(classes, starts[1:])):
            key = members.tobytes()
            if key not in sets:
                sets[key] = len(sets)
                found.append(members)
            label[index] = sets[key]
        states = automaton.target.shape[1]
        few, few_begin, bulk = _tokens(automaton)
        return cls(
            automaton,
            np.searchsorted(source[starts], np.arange(states + 1)).astype(np.int64),
            target[starts].astype(np.int64),
            label,
            np.cumsum([0, *(len(m) for m in found)]).astype(np.int64),
            np.concatenate(found).astype(np.int64),
            few,
            few_begin,
            bulk,
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


def _tokens(automaton: TokenAutomaton) -> tuple[Integers, Integers, dict[int, Integers]]:
    """Tokens of small classes, where each class of them begins, and tokens of large classes."""
    classes = len(automaton.target)
    order = np.argsort(automaton.class_of, kind="stable").astype(np.int64)
    begin = np.searchsorted(automaton.class_of[order], np.arange(classes + 1))
    large = np.diff(begin) >= BULK
    large[0] = True
    bulk = {int(c): order[begin[c] : begin[c + 1]] for c in np.flatnonzero(large) if begin[c] < begin[c + 1]}
    few = order[~large[automaton.class_of[order]]]
    few_begin = np.searchsorted(automaton.class_of[few], np.arange(classes + 1))
    few_begin[0] = 0
    return few, few_begin.astype(np.int64), bulk
