"""An automaton over bytes becomes one over tokens.

Tokens that lead every state to the same states are one class: elements of the automaton's transition monoid. They are
found on a trie of the vocabulary, level by level, each pair of a behaviour and a byte once: the cost is the trie's
nodes and behaviours times states, not tokens times states.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtllm_build.grammar.automaton import Automaton, distances
from trtllm_build.grammar.budget import Budget
from trtllm_build.grammar.token_automaton import FAR, TokenAutomaton
from trtllm_build.grammar.vocabulary import Vocabulary

Rows = NDArray[Any]  # int16 or int32
_MOST_CELLS = 20_000_000  # behaviours times states that are held at a time, of two bytes each


def token_automaton(
    source: Automaton, vocabulary: Vocabulary, end_ids: Collection[int], budget: Budget
) -> TokenAutomaton:
    """The rows of tokens whose text an automaton accepts, with an end token behind it.

    Args:
        source: over bytes and tokens.
        vocabulary: the tokens' texts.
        end_ids: tokens that end an answer; they are no text, whatever the vocabulary says.
        budget: what it may cost.

    Raises:
        FieldError: when it takes too long or is too large, or when the vocabulary cannot write any of its texts.
    """
    if vocabulary.drops_space:
        source = _with_dropped_space(source)
    class_of, rows = _classes(source, vocabulary, budget)
    return _assemble(source, class_of, rows, end_ids, budget)


def _with_dropped_space(source: Automaton) -> Automaton:
    """A first space more or less: the tokenizer leaves one out, so the texts are those with it and those without one.

    A text that begins with a space needs two.
    """
    before = source.states  # the new start
    space = int(source.atom_of[ord(" ")])
    shared = int((source.atom_of == space).sum()) > 1
    table, atom_of = source.table, source.atom_of
    tokens = source.tokens
    if shared:  # the space gets an atom of its own
        table = np.hstack([table, table[:, space : space + 1]])
        atom_of = atom_of.copy()
        atom_of[ord(" ")] = space = table.shape[1] - 1
    first = table[source.start : source.start + 1].copy()
    first[0, space] = source.start
    accepting = np.append(source.accepting, source.accepting[source.start])
    return Automaton(np.vstack([table, first]).astype(np.int32), atom_of, tokens, before, accepting)


def _classes(source: Automaton, vocabulary: Vocabulary, budget: Budget) -> tuple[NDArray[np.int32], Rows]:
    """The class of each token that has a text, and where each class leads; the first refuses everywhere."""
    states, atoms = source.table.shape
    table = np.vstack([source.table, np.full((1, atoms), -1)]).astype(np.int16)  # -1 stays -1
    refused = np.full((1, states), -1, np.int16)
    names = _Interned(states)
    names.number(refused)
    classes = [refused]
    class_of = np.zeros(vocabulary.trie.size, np.int32)
    above = np.vstack([refused, np.arange(states, dtype=np.int16)[None]])  # behaviours of the level above
    of_node = np.ones(1, np.int32)  # the root changes nothing
    for level in vocabulary.trie.levels:
        budget.check_time()
        steps = of_node[level.parent]
        steps *= 256
        steps += level.byte
        seen = np.zeros(len(above) * 256, bool)
        seen[steps] = True
        seen[:256] = False  # what is refused stays refused
        taken = np.flatnonzero(seen)
        pairs, pair_of = np.unique((taken >> 8) * atoms + source.atom_of[taken & 255], return_inverse=True)
        if len(pairs) * states > _MOST_CELLS:
            raise budget.error("a grammar whose tokens act in fewer ways")
        rows = table[above[pairs // atoms], (pairs % atoms)[:, None]]
        above, number = _distinct(np.vstack([refused, rows]))
        if len(above) == 1:
            break
        where = np.zeros(len(seen), np.int32)
        where[taken] = number[1:][pair_of]
        of_node = where[steps]
        ends = of_node[level.ends]
        used = np.flatnonzero(np.bincount(ends, minlength=len(above)))
        found, new = names.number(above[used])
        classes.append(above[used][new])
        renamed = np.zeros(len(above), np.int32)
        renamed[used] = found
        class_of[level.tokens] = renamed[ends]
    return class_of, np.vstack(classes)


def _distinct(rows: Rows) -> tuple[Rows, NDArray[np.int64]]:
    """Different rows, the first one first, and the number of each row among them."""
    numbers, fresh = _Interned(rows.shape[1]).number(rows)
    return rows[fresh], numbers


class _Interned:
    """Numbers of rows, in the order in which they come; the same for equal rows."""

    def __init__(self, width: int):
        self._known: dict[bytes, int] = {}
        self._width = width

    def number(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The number of each row, and the indices of those that are new."""
        known, numbers, fresh = self._known, [], []
        whole, step = np.ascontiguousarray(rows).tobytes(), self._width * rows.itemsize
        for i in range(len(rows)):
            key = whole[i * step : (i + 1) * step]
            number = known.get(key)
            if number is None:
                number = known[key] = len(known)
                fresh.append(i)
            numbers.append(number)
        return np.array(numbers, np.int64), np.array(fresh, np.int64)


def _assemble(
    source: Automaton,
    class_of: NDArray[np.int32],
    rows: Rows,
    end_ids: Collection[int],
    budget: Budget,
) -> TokenAutomaton:
    """Classes of texts, of tokens without text and of end tokens, over the states that an answer can go through."""
    end = source.states
    table: NDArray[np.int32] = np.hstack([rows, np.full((len(rows), 1), -1)]).astype(np.int32)
    for token in {*source.tokens, *end_ids}:
        row = np.full(end + 1, -1, np.int32)
        if token in source.tokens:
            row[:end] = source.table[:, source.tokens[token]]
        if token in end_ids:
            if (row[:end][source.accepting] >= 0).any():
                raise ValueError(f"token {token} both ends an answer and goes on with it")
            row[:end][source.accepting] = row[end] = end
        class_of[token] = len(table)
        table = np.vstack([table, row])
    accepting = np.append(source.accepting, True)
    from_, to = _edges(table)
    budget.check_pairs(len(from_))
    kept = _useful(from_, to, source.start, accepting)
    if not kept[source.start]:
        raise budget.error("a grammar with a text that the tokenizer's tokens can write")
    number = np.full(end + 2, -1, np.int32)  # the last one: where a class is refused
    number[:-1][kept] = np.arange(kept.sum())
    table = number[table[:, kept]]
    # without the other states more classes are the same
    merged, found = _distinct(np.vstack([np.full((1, table.shape[1]), -1, np.int32), table]))
    from_, to = _edges(table)
    budget.check_time()
    return TokenAutomaton(
        class_of=found[1:][class_of].astype(np.int32),
        target=np.ascontiguousarray(merged, np.int32),
        start=int(number[source.start]),
        accepting=accepting[kept],
        distance=distances(from_, to, accepting[kept], FAR),
        end=int(number[end]),
    )


def _edges(table: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of states that a class joins, each once."""
    classes, states = np.nonzero(table >= 0)
    found = np.unique(states * table.shape[1] + table[classes, states])
    return found // table.shape[1], found % table.shape[1]


def _useful(
    from_: NDArray[np.int64], to: NDArray[np.int64], start: int, accepting: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """The states that tokens lead to from the start, and from which they lead to an accepting one."""
    at_start = np.arange(len(accepting)) == start
    reached = distances(to, from_, at_start, FAR) < FAR
    found: NDArray[np.bool_] = reached & (distances(from_, to, accepting, FAR) < FAR)
    return found
