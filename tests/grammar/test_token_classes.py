"""An automaton over tokens accepts those rows whose text the automaton over bytes accepts, and its classes are few."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from nemo_diffgemma.errors import FieldError
from tests.grammar.support import END, draw, small_vocabulary
from trtllm_build.grammar.automaton import Automaton
from trtllm_build.grammar.budget import Budget
from trtllm_build.grammar.determinise import automaton
from trtllm_build.grammar.expressions import Expression, Literal, Token, either, literal, sequence
from trtllm_build.grammar.regex import regex
from trtllm_build.grammar.token_automaton import TokenAutomaton
from trtllm_build.grammar.token_classes import token_automaton
from trtllm_build.grammar.token_trie import TokenTrie
from trtllm_build.grammar.vocabulary import Vocabulary

_TEXTS = (None, b"a", b"b", b"ab", b"ba", b"abb", b"c", b" ", b" a", None, b"\xc3", b"\xa9", b"a", b"", b"bbb")


def budget() -> Budget:
    return Budget("grammar", "a test", seconds=60)


def made(
    expression: Expression, vocabulary: Vocabulary, ends: tuple[int, ...] = (0,)
) -> tuple[Automaton, TokenAutomaton]:
    source = automaton(expression, budget())
    return source, token_automaton(source, vocabulary, ends, budget())


def accepted(found: TokenAutomaton, row: tuple[int, ...]) -> bool:
    state = found.start
    for token in row:
        state = found.step(state, token)
        if state < 0:
            return False
    return bool(found.accepting[state])


@pytest.mark.parametrize("pattern", ["(ab)*", "a*b|c", "(a|b){2,5}", "é?b+", " ?a(bb)* ?", "(abb|ab)*c?", "a"])
@pytest.mark.parametrize("drops_space", [False, True])
def test_against_the_bytes(pattern: str, drops_space: bool) -> None:
    vocabulary = Vocabulary(_TEXTS, drops_space)
    source, found = made(regex(pattern, "grammar.regex"), vocabulary)
    for length in range(4):
        for row in itertools.product(range(len(_TEXTS)), repeat=length):
            texts = [_TEXTS[token] for token in row]
            data = b"".join(text or b"" for text in texts)
            if drops_space:
                data = data.removeprefix(b" ")
            # the end token may follow, again and again
            written = list(itertools.dropwhile(lambda token: token == 0, reversed(row)))
            has_text = all(_TEXTS[token] for token in written)
            assert accepted(found, row) == (has_text and source.accepts(data)), row


def test_what_the_arrays_say() -> None:
    _, found = made(regex(r"(yes|no)( \d+)?", "grammar.regex"), small_vocabulary())
    classes, states = found.target.shape
    assert found.states == states
    assert found.class_of.dtype == found.target.dtype == np.int32
    assert found.distance.dtype == np.int64
    assert (found.target[0] == -1).all()
    assert len(np.unique(found.target, axis=0)) == classes  # no two classes act alike
    assert set(np.unique(found.class_of)) == set(range(classes))
    # the end: from every accepting state to it, and nothing else leaves it
    ends = found.target[found.class_of[END]]
    assert (ends[found.accepting] == found.end).all()
    assert (ends[~found.accepting] == -1).all()
    assert (np.delete(found.target[:, found.end], found.class_of[END]) == -1).all()
    assert found.accepting[found.end]
    # distances, by relaxation
    far = np.where(found.accepting, 0, 10**6)
    for _ in range(states):
        steps = np.where(found.target >= 0, far[found.target] + 1, 10**6).min(0)
        far = np.minimum(far, steps)
    assert np.array_equal(found.distance, far)
    with pytest.raises(ValueError, match="read-only"):
        found.target[0, 0] = 1


def test_states_that_no_token_leads_to_or_away_from_are_gone() -> None:
    # "a" and "b" are no tokens of their own, "c" cannot be written at all
    vocabulary = Vocabulary((None, b"ab", b"abab", b"d"))
    _, found = made(regex("(ab)+(c|d)?", "grammar.regex"), vocabulary)
    assert found.states == 4  # the start, behind ab, behind d, the end
    assert (found.distance < 10).all()


def test_a_text_that_no_tokens_write_is_refused() -> None:
    with pytest.raises(FieldError, match="a text that the tokenizer's tokens can write"):
        made(literal("abc"), Vocabulary((None, b"ab", b"b")))


def test_tokens_without_text_and_several_ends() -> None:
    vocabulary = Vocabulary((None, None, None, None, b"a", b"b"))
    _, found = made(sequence(Token(2), either(literal("a"), literal("b")), Token(3)), vocabulary, (0, 1))
    assert accepted(found, (2, 4, 3, 0, 1, 0))
    assert not accepted(found, (2, 4))
    assert found.class_of[0] == found.class_of[1]
    assert found.class_of[4] == found.class_of[5]
    assert len(found.target) == 5
    with pytest.raises(ValueError, match="both ends an answer and goes on with it"):
        made(either(literal("a"), sequence(literal("a"), Token(2))), vocabulary, (2,))


def test_an_end_token_is_no_text() -> None:
    _, found = made(regex("a*", "grammar.regex"), Vocabulary((b"a", b"aa")))
    assert accepted(found, (1, 0, 0))
    assert not accepted(found, (0, 1))


def test_what_is_drawn_is_accepted() -> None:
    source, found = made(regex(r"[^\n]*é\d{3}", "grammar.regex"), small_vocabulary())
    g = random.Random(3)
    for most in (0, 3, 20, 100) * 20:
        assert source.accepts(draw(found, small_vocabulary(), g, most))


def test_the_trie_spells_every_token() -> None:
    texts = (b"abc", b"ab", None, b"b", b"", b"abc", b"\xff" * 40, b"a")
    trie = TokenTrie(texts)
    spelled: dict[int, bytes] = {}
    above = [b""]
    for level in trie.levels:
        here = [above[p] + bytes([b]) for p, b in zip(level.parent.tolist(), level.byte.tolist(), strict=True)]
        assert len(set(here)) == len(here)
        spelled |= {token: here[node] for token, node in zip(level.tokens.tolist(), level.ends.tolist(), strict=True)}
        above = here
    assert spelled == {i: text for i, text in enumerate(texts) if text}
    assert trie.nodes == 3 + 1 + 40
    assert TokenTrie((None, b"")).levels == []


def test_too_many_pairs_are_refused() -> None:
    vocabulary = Vocabulary(
        (None, *(bytes([97 + i]) for i in range(26)), *(bytes([97 + i]) * n for i in range(26) for n in range(2, 30)))
    )
    with pytest.raises(FieldError, match="at most 200000 pairs"):
        made(regex("[a-z]{0,9000}", "grammar.regex"), vocabulary)


def test_bytes_beyond_utf8_are_bytes() -> None:
    _, found = made(Literal(b"\xc3\xa9"), Vocabulary(_TEXTS))
    assert accepted(found, (10, 11))
    assert not accepted(found, (11, 10))
