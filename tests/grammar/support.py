"""Vocabularies, and texts drawn at random from an automaton."""

from __future__ import annotations

import random
from functools import cache

import numpy as np

from trtllm_build.grammar.token_automaton import TokenAutomaton
from trtllm_build.grammar.vocabulary import Vocabulary

END = 0
_WORDS = (
    '"',
    '": "',
    '", "',
    '": ',
    ", ",
    '"}',
    "{",
    "}",
    "[",
    "]",
    '{"',
    '": [',
    "true",
    "false",
    "null",
    "name",
    "type",
    "the",
    "and",
    "é",
    "日本",
    "😀",
    "\\",
    '\\"',
    "\\u00",
    "20",
    "24-0",
    "-1",
    "00",
    "0.",
    "1e",
    "e+",
    "  ",
    "\n",
    "kids",
    "abc",
    "@",
    ".com",
    "T1",
    ":00",
    "Z",
    "value",
    '"a',
    '": {"',
    "}}",
    "]}",
    '"]',
)


@cache
def small_vocabulary() -> Vocabulary:
    """The end token, two tokens that are no text, every byte, and words across the borders of JSON's tokens."""
    return Vocabulary((None, None, None, *(bytes([byte]) for byte in range(256)), *(w.encode() for w in _WORDS)))


def tokens_of_classes(automaton: TokenAutomaton) -> list[list[int]]:
    """The tokens of each class."""
    found: list[list[int]] = [[] for _ in automaton.target]
    for token, number in enumerate(automaton.class_of.tolist()):
        found[number].append(token)
    return found


def draw(automaton: TokenAutomaton, vocabulary: Vocabulary, g: random.Random, most: int) -> bytes:
    """The text of :func:`draw_tokens`."""
    return b"".join(vocabulary.texts[token] or b"" for token in draw_tokens(automaton, g, most))


def draw_tokens(automaton: TokenAutomaton, g: random.Random, most: int) -> list[int]:
    """A random row of at most ``most`` tokens (or of the fewest that there are) that is accepted, without its end."""
    tokens = tokens_of_classes(automaton)
    state, row = automaton.start, []
    most = max(most, int(automaton.distance[state]))
    while True:
        if automaton.accepting[state] and (most == 0 or g.random() < 0.1):
            return row
        targets = automaton.target[:, state]
        good = np.flatnonzero((targets >= 0) & (targets != automaton.end))
        good = good[automaton.distance[targets[good]] < most]
        if not len(good):
            assert automaton.accepting[state]
            return row
        chosen = int(g.choice(good.tolist()))
        row.append(g.choice(tokens[chosen]))
        state, most = int(targets[chosen]), most - 1
