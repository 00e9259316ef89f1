"""A canvas under a grammar by enumeration: what inference must equal."""

from __future__ import annotations

from itertools import product

import numpy as np

from trtllm_build.grammar.token_automaton import TokenAutomaton


def random_automaton(random: np.random.Generator, vocab: int, states: int) -> TokenAutomaton:
    """States that can all be completed; some tokens act alike, some lead nowhere."""
    end, start = states - 1, 0
    while True:
        kinds = int(random.integers(1, vocab))
        target = np.where(random.random((kinds, end)) < 0.5, random.integers(0, end, (kinds, end)), -1)
        class_of = random.integers(0, kinds + 1, vocab).astype(np.int32)
        accepting = random.random(states) < 0.4
        accepting[end] = True
        class_of[vocab - 1] = kinds + 1  # the end of the answer
        whole = np.full((kinds + 2, states), -1, np.int32)
        whole[1 : kinds + 1, :end] = target
        whole[kinds + 1] = np.where(accepting, end, -1)
        distance = np.where(accepting, 0, 10**9).astype(np.int64)
        for _ in range(states):
            for c in set(class_of.tolist()) - {0}:
                reached = np.where(whole[c] >= 0, distance[whole[c]] + 1, 10**9)
                distance = np.minimum(distance, reached)
        if (distance < 10**9).all():
            return TokenAutomaton(class_of, whole, start, accepting, distance, end)


def everything(vocab: int) -> TokenAutomaton:
    """Accepts whatever is written."""
    one = np.ones(1, bool)
    target = np.array([[-1], [0]], np.int32)
    return TokenAutomaton(np.ones(vocab, np.int32), target, 0, one, np.zeros(1, np.int64), 0)


class Enumerated:
    """Every text of a canvas that is accepted and can be completed.

    Args:
        automaton: the grammar.
        logits: ``[rows, vocab]`` tempered.
        state: before the first row.
        remaining: tokens that may follow.
    """

    def __init__(self, automaton: TokenAutomaton, logits: np.ndarray, state: int, remaining: int):
        rows, vocab = logits.shape
        alone = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        alone -= logits.max(-1, keepdims=True)
        texts, weights = [], []
        for text in product(range(vocab), repeat=rows):
            at = state
            for token in text:
                at = int(automaton.target[automaton.class_of[token], at])
                if at < 0:
                    break
            if at >= 0 and automaton.distance[at] <= remaining:
                texts.append(text)
                weights.append(sum(alone[i, t] for i, t in enumerate(text)))
        self.texts = np.array(texts)
        weights = np.array(weights)
        self.log_z = float(np.logaddexp.reduce(weights)) if len(weights) else -np.inf
        self.probabilities = np.exp(weights - self.log_z)
        self.marginals = np.zeros((rows, vocab))
        for text, p in zip(texts, self.probabilities, strict=True):
            self.marginals[np.arange(rows), text] += p
        self.entropy = -(self.marginals * np.log(np.maximum(self.marginals, 1e-300))).sum(-1)
