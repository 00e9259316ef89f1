"""Expressions as automata, against Python's own regular expressions and against enumeration."""

from __future__ import annotations

import itertools
import random
import re

import numpy as np
import pytest

from nemo_diffgemma.errors import FieldError
from trtllm_build.grammar.automaton import Automaton
from trtllm_build.grammar.budget import Budget
from trtllm_build.grammar.code_points import complement, contains, union, without
from trtllm_build.grammar.determinise import automaton
from trtllm_build.grammar.expressions import (
    Alternation,
    CodePoints,
    Expression,
    Loop,
    Machine,
    Named,
    Repetition,
    Series,
    Token,
    either,
    literal,
    optional,
    sequence,
)
from trtllm_build.grammar.products import difference, intersection
from trtllm_build.grammar.utf8 import byte_rows


def budget() -> Budget:
    return Budget("grammar", "a test", seconds=60)


def made(expression: Expression) -> Automaton:
    return automaton(expression, budget())


def language(found: Automaton, alphabet: str, longest: int) -> set[str]:
    texts = ("".join(t) for n in range(longest + 1) for t in itertools.product(alphabet, repeat=n))
    return {text for text in texts if found.accepts(text.encode())}


def random_expression(g: random.Random, depth: int) -> tuple[Expression, str]:
    """An expression, and the regular expression of the same texts."""
    kind = g.choice("lc" if depth == 0 else "lcsarko")
    if kind == "l":
        text = g.choice(["a", "b", "ab", ""])
        return literal(text), text
    if kind == "c":
        return CodePoints(((ord("a"), ord("b")),)), "[ab]"
    first, second = (random_expression(g, depth - 1) for _ in range(2))
    if kind == "s":
        return sequence(first[0], second[0]), f"(?:{first[1]})(?:{second[1]})"
    if kind == "a":
        return either(first[0], second[0]), f"(?:{first[1]}|{second[1]})"
    if kind == "o":
        return optional(first[0]), f"(?:{first[1]})?"
    if kind == "k":
        return Loop(first[0], literal("c")), f"(?:{first[1]})(?:c(?:{first[1]}))*"
    least = g.randint(0, 2)
    most = g.choice([None, least, least + 1])
    return Repetition(first[0], least, most), f"(?:{first[1]}){{{least},{'' if most is None else most}}}"


def test_random_expressions_accept_what_python_matches() -> None:
    g = random.Random(4)
    for _ in range(150):
        expression, pattern = random_expression(g, 4)
        compiled = re.compile(pattern)
        found = made(expression)
        for text in ("".join(t) for n in range(6) for t in itertools.product("abc", repeat=n)):
            assert found.accepts(text.encode()) == bool(compiled.fullmatch(text)), (pattern, text)


def test_equal_languages_have_equally_few_states() -> None:
    one = made(Repetition(either(literal("ab"), literal("a"))))
    other = made(Repetition(sequence(literal("a"), optional(literal("b")))))
    assert one.states == other.states == 2
    # no two states of a minimal automaton accept the same texts
    found = made(either(*(sequence(literal(a), literal(b)) for a in "abc" for b in "de")))
    assert found.states == 3


def test_a_series_separates_what_is_there() -> None:
    found = made(Series(((literal("a"), False), (literal("b"), True), (literal("c"), False)), literal(",")))
    assert language(found, "abc,", 5) == {"b", "a,b", "b,c", "a,b,c"}
    found = made(Series(((literal("a"), False), (literal("b"), False)), literal(",")))
    assert language(found, "ab,", 3) == {"", "a", "b", "a,b"}
    assert language(made(Series((), literal(","))), ",", 1) == {""}


def test_every_code_point_is_spelled_as_utf8_spells_it() -> None:
    g = random.Random(2)
    for _ in range(30):
        ranges = union(sorted(g.sample(range(0x110000), 2)) for _ in range(g.randint(1, 4)))  # type: ignore[misc]
        found = made(CodePoints(ranges))
        borders = [p + d for r in ranges for p in r for d in (-1, 0, 1)]
        for point in (*borders, *g.sample(range(0x110000), 200), 0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, 0x10000):
            if 0 <= point < 0x110000 and not 0xD800 <= point < 0xE000:
                assert found.accepts(chr(point).encode()) == contains(ranges, point), (ranges, hex(point))
    assert made(CodePoints(((0, 0x10FFFF),))).states == 9  # seven beginnings of longer characters
    assert byte_rows(((0xD800, 0xDFFF),)) == ()
    everything = made(CodePoints(((0, 0x10FFFF),)))
    for bad in (b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff", b"\x80", b"\xc3"):
        assert not everything.accepts(bad)


def test_sets_of_code_points() -> None:
    assert union([(5, 6), (1, 2), (3, 3), (8, 9)]) == ((1, 3), (5, 6), (8, 9))
    assert complement(((0, 4), (6, 0x10FFFF))) == ((5, 5),)
    assert without(((0, 10),), ((3, 4), (9, 20))) == ((0, 2), (5, 8))


def test_products_are_intersection_and_difference() -> None:
    g = random.Random(9)
    for _ in range(40):
        a, b = (made(random_expression(g, 3)[0]) for _ in range(2))
        left, right = language(a, "abc", 5), language(b, "abc", 5)
        assert language(intersection(a, b, budget()), "abc", 5) == left & right
        assert language(difference(a, b, budget()), "abc", 5) == left - right


def test_a_machine_and_a_token_inside_an_expression() -> None:
    inner = made(either(sequence(literal("a"), Token(7)), literal("b")))
    found = made(sequence(literal("x"), Machine(inner), Token(9)))
    assert set(found.tokens) == {7, 9}
    state = found.start
    for symbol in ("x", "a", 7, 9):
        atom = found.tokens[symbol] if isinstance(symbol, int) else found.atom_of[ord(symbol)]
        state = int(found.table[state, atom])
        assert state >= 0
    assert found.accepting[state]
    assert not found.accepts(b"xb")


def test_a_language_without_texts_is_empty() -> None:
    for nothing in (Alternation(()), CodePoints(()), sequence(literal("a"), Alternation(()))):
        found = made(nothing)
        assert found.empty
        assert (found.table == -1).all()
    assert not made(literal("")).empty


def test_every_state_leads_to_the_end() -> None:
    found = made(either(sequence(literal("ab"), Alternation(())), literal("c")))
    assert found.states == 2
    assert np.array_equal(np.sort(np.unique(found.table)), [-1, 1 - found.start])


def test_limits_name_the_largest_part() -> None:
    many = Named("$.a", Repetition(literal("abcdefghij"), 0, 50_000))
    with pytest.raises(FieldError, match=r"grammar at \$\.a: .* at most 200000 steps"):
        automaton(sequence(literal("x"), many), budget())
    wide = Named(
        "$.b", sequence(Repetition(CodePoints(((97, 98),))), literal("a"), Repetition(CodePoints(((97, 98),)), 20, 20))
    )
    with pytest.raises(FieldError, match=r"grammar at \$\.b: .* at most 20000 states"):
        automaton(sequence(literal("x"), wide), budget())
    with pytest.raises(FieldError, match="compiles in 2 s"):
        automaton(wide, Budget("grammar", "late", seconds=-1))
