"""An automaton over bytes becomes one over tokens.

Tokens that lead every state to the same states are one class: elements of the automaton's transition monoid. They are
found on a trie of the vocabulary, level by level, each pair of a behaviour and a byte once: the cost is the trie's
nodes and behaviours times states, not tokens times states.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from trtllm_build.grammar.automaton import Automaton, distances
from trtllm_build.grammar.behaviours import Behaviours, Integers, Interned, joined, of_rows
from trtllm_build.grammar.budget import Budget
from trtllm_build.grammar.token_automaton import FAR, TokenAutomaton
from trtllm_build.grammar.vocabulary import Vocabulary

_MOST_MOVES = 20_000_000  # of the behaviours of one level of the trie, four bytes each
_MOST_CELLS = 40_000_000  # classes times states, four bytes each


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
    class_of, classes = _classes(source, vocabulary, budget)
    return _assemble(source, class_of, classes, end_ids, budget)


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


def _classes(source: Automaton, vocabulary: Vocabulary, budget: Budget) -> tuple[NDArray[np.int32], Behaviours]:
    """The class of each token that has a text, and what each class does; the first refuses everything."""
    states, atoms = source.table.shape
    names = Interned()
    class_of = np.zeros(vocabulary.trie.size, np.int32)
    refused = of_rows([np.full(states, -1, np.int32)])
    classes = [refused]
    above = of_rows([np.full(states, -1, np.int32), np.arange(states, dtype=np.int32)])  # of the level above
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
        # bytes of one atom act alike
        pairs, pair_of = np.unique((taken >> 8) * atoms + source.atom_of[taken & 255], return_inverse=True)
        numbers, above = _stepped(source, above, pairs // atoms, pairs % atoms, budget)
        if len(above) == 1:
            break
        where = np.zeros(len(seen), np.int32)
        where[taken] = numbers[pair_of]
        of_node = where[steps]
        ends = of_node[level.ends]
        used = np.flatnonzero(np.bincount(ends, minlength=len(above)))
        ending = above.chosen(used)
        found, new = names.number(ending)
        classes.append(ending.chosen(new))
        renamed = np.zeros(len(above), np.int32)
        renamed[used] = found
        class_of[level.tokens] = renamed[ends]
    return class_of, joined(classes)


def _stepped(
    source: Automaton, above: Behaviours, which: Integers, atoms: Integers, budget: Budget
) -> tuple[Integers, Behaviours]:
    """Behaviours with one atom more: their numbers, and the different ones by number."""
    before = above.chosen(which)
    if len(before.moves) > _MOST_MOVES:
        raise budget.error("a grammar whose tokens act in fewer ways")
    targets = source.table[before.targets, atoms[before.owners]].astype(np.int64)
    after = before.kept(targets >= 0, before.states, targets)
    numbers, new = Interned().number(after)
    return numbers, joined([of_rows([np.full(source.states, -1, np.int32)]), after.chosen(new)])


def _assemble(
    source: Automaton, class_of: NDArray[np.int32], classes: Behaviours, end_ids: Collection[int], budget: Budget
) -> TokenAutomaton:
    """Classes of texts, of tokens without text and of end tokens, over the states that an answer can go through."""
    end = source.states
    rows: list[NDArray[np.int32]] = []
    for token in {*source.tokens, *end_ids}:
        row = np.full(end + 1, -1, np.int32)
        if token in source.tokens:
            row[:end] = source.table[:, source.tokens[token]]
        if token in end_ids:
            if (row[:end][source.accepting] >= 0).any():
                raise ValueError(f"token {token} both ends an answer and goes on with it")
            row[:end][source.accepting] = row[end] = end
        class_of[token] = len(classes) + len(rows)
        rows.append(row)
    classes = joined([classes, of_rows(rows)])
    accepting = np.append(source.accepting, True)
    from_, to = _edges(classes)
    budget.check_pairs(len(from_))
    kept = _useful(from_, to, source.start, accepting)
    if not kept[source.start]:
        raise budget.error("a grammar with a text that the tokenizer's tokens can write")
    number = np.where(kept, np.cumsum(kept) - 1, -1)
    states, targets = number[classes.states], number[classes.targets]
    classes = classes.kept((states >= 0) & (targets >= 0), states, targets)
    # without the other states more classes are the same
    renamed, new = Interned().number(classes)
    count = int(kept.sum())
    if (len(new) + 1) * count > _MOST_CELLS:
        raise budget.error("a grammar whose tokens act in fewer ways")
    target = np.full((len(new) + 1, count), -1, np.int32)
    different = classes.chosen(new)
    target[different.owners + 1, different.states] = different.targets
    from_, to = _edges(different)
    budget.check_time()
    return TokenAutomaton(
        class_of=renamed[class_of].astype(np.int32),
        target=target,
        start=int(number[source.start]),
        accepting=accepting[kept],
        distance=distances(from_, to, accepting[kept], FAR),
        end=int(number[end]),
    )


def _edges(classes: Behaviours) -> tuple[Integers, Integers]:
    """The pairs of states that a class joins, each once."""
    found = np.unique(classes.moves)
    return (found >> 16).astype(np.int64), (found & 0xFFFF).astype(np.int64)


def _useful(from_: Integers, to: Integers, start: int, accepting: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The states that tokens lead to from the start, and from which they lead to an accepting one."""
    at_start = np.arange(len(accepting)) == start
    reached = distances(to, from_, at_start, FAR) < FAR
    found: NDArray[np.bool_] = reached & (distances(from_, to, accepting, FAR) < FAR)
    return found
