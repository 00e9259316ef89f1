"""A request's grammar: which kinds there are, what is refused, and that a compiled one is kept."""

from __future__ import annotations

import json
import random
import threading
from typing import Any

import pytest

from nemo_diffgemma.errors import FieldError
from tests.grammar.support import END, draw, small_vocabulary
from trtllm_build.grammar import compile as module
from trtllm_build.grammar.compile import compile_grammar
from trtllm_build.grammar.kept import Kept
from trtllm_build.grammar.token_automaton import TokenAutomaton


def made(grammar: Any) -> TokenAutomaton:
    return compile_grammar(grammar, small_vocabulary(), [END])


def drawn(found: TokenAutomaton, count: int = 200) -> set[bytes]:
    g = random.Random(2)
    return {draw(found, small_vocabulary(), g, g.randint(0, 60)) for _ in range(count)}


def test_each_kind() -> None:
    assert drawn(made({"choice": ["yes", "no", "yes!"]})) == {b"yes", b"no", b"yes!"}
    assert drawn(made({"regex": "a|bb"})) == {b"a", b"bb"}
    assert drawn(made({"json_schema": {"enum": [1, {"a": [True]}]}})) == {b"1", b'{"a": [true]}'}
    for text in drawn(made({"json_object": True}), 60):
        assert isinstance(json.loads(text), dict)


def test_whitespace() -> None:
    schema = {"enum": [{"a": [1, 2]}]}
    assert drawn(made({"json_schema": schema, "whitespace": "compact"})) == {b'{"a":[1,2]}'}
    assert drawn(made({"json_schema": schema, "whitespace": "spaced"})) == {b'{"a": [1, 2]}'}
    flexible = drawn(made({"json_schema": schema, "whitespace": "flexible"}))
    assert len(flexible) > 20
    assert all(json.loads(text) == {"a": [1, 2]} for text in flexible)


@pytest.mark.parametrize(
    ("grammar", "field", "allowed"),
    [
        ({}, "grammar", "exactly one of regex, choice, json_schema, json_object"),
        ({"regex": "a", "choice": ["a"]}, "grammar", "exactly one of"),
        ({"whitespace": "compact"}, "grammar", "exactly one of"),
        ({"regexp": "a"}, "grammar.regexp", "of all keys"),
        ({"regex": "a", "strict": True}, "grammar.strict", "of all keys"),
        ("a", "grammar", "an object"),
        (None, "grammar", "an object"),
        ({"regex": 3}, "grammar.regex", "a regular expression"),
        ({"regex": "["}, "grammar.regex", "cannot be read"),
        ({"regex": r"(a)\1"}, "grammar.regex", "references to groups"),
        ({"regex": "\ud800"}, "grammar.regex", "some text fits"),
        ({"regex": "(?:a{1000}){1000}"}, "grammar.regex", "at most 200000 steps|in 2 s"),
        ({"regex": "[ab]*a[ab]{20}"}, "grammar.regex", "at most 20000 states|in 2 s"),
        ({"choice": []}, "grammar.choice", "at least one string"),
        ({"choice": ["a", ""]}, "grammar.choice", "none of them empty"),
        ({"choice": "ab"}, "grammar.choice", "an array"),
        ({"choice": [1]}, "grammar.choice", "an array"),
        ({"choice": ["a", "\ud800"]}, "grammar.choice[1]", "no lone surrogates"),
        ({"json_object": 1}, "grammar.json_object", "true"),
        ({"json_object": False}, "grammar.json_object", "true"),
        ({"json_schema": {"const": b"a"}}, "grammar.json_schema", "a value of JSON"),
        ({"json_schema": {"x": {1, 2}}}, "grammar.json_schema", "a value of JSON"),
        ({"json_schema": {}, "whitespace": "none"}, "grammar.whitespace", "spaced, compact, flexible"),
        ({"json_schema": {}, "whitespace": None}, "grammar.whitespace", "spaced, compact, flexible"),
        ({"regex": "a", "whitespace": "compact"}, "grammar.whitespace", "beside json_schema or json_object"),
    ],
)
def test_what_is_no_grammar_is_refused(grammar: Any, field: str, allowed: str) -> None:
    with pytest.raises(FieldError) as found:
        made(grammar)
    assert found.value.field == field
    assert any(part in found.value.allowed for part in allowed.split("|")), found.value.allowed


def test_a_compiled_grammar_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COMPILED", Kept())
    first = made({"json_schema": {"properties": {"a": {}, "b": {}}}})
    assert made({"json_schema": {"properties": {"a": {}, "b": {}}}}) is first
    assert made({"json_schema": {"properties": {"b": {}, "a": {}}}}) is not first  # the order of keys counts
    assert compile_grammar({"regex": "a"}, small_vocabulary(), [END]) is made({"regex": "a"})
    assert compile_grammar({"regex": "a"}, small_vocabulary(), [END, 1]) is not made({"regex": "a"})


def test_threads_share_what_is_kept() -> None:
    found: list[TokenAutomaton] = []

    def work(seed: int) -> None:
        g = random.Random(seed)
        for _ in range(20):
            found.append(made({"choice": [f"t{g.randint(0, 3)}"]}))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 160
    assert len({id(made({"choice": [f"t{i}"]})) for i in range(4)}) == 4


@pytest.mark.parametrize("ends", [[], [-1], [10**6]])
def test_end_tokens_are_of_the_vocabulary(ends: list[int]) -> None:
    with pytest.raises(ValueError, match="end tokens"):
        compile_grammar({"regex": "a"}, small_vocabulary(), ends)
