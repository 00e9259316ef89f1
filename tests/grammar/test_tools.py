"""Calls that a tools' grammar allows: read back, their arguments are valid."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from nemo_diffgemma.errors import FieldError
from tests.grammar.random_schemas import random_schema
from tests.grammar.schemas import record
from tests.grammar.support import draw_tokens, small_vocabulary
from trtllm_build.grammar.compile import compile_grammar
from trtllm_build.grammar.token_automaton import TokenAutomaton
from trtllm_build.grammar.tools import ToolTokens, read_calls
from trtllm_build.grammar.vocabulary import Vocabulary

END, TOKENS = 0, ToolTokens(call=1, call_end=2, quote=3)
_WEATHER = record(["place"], place={"type": "string"}, days={"type": "integer", "minimum": 1, "maximum": 14})
_ORDER = record(
    Items={"type": "array", "items": record(id={"type": "integer"}, note={"type": ["string", "null"]}), "minItems": 1},
    express={"type": "boolean"},
    colour={"enum": ["red", 'b"l,u:e}', 3]},
)
_FUNCTIONS = [
    {"name": "get_weather", "parameters": _WEATHER},
    {"name": "shop.order", "parameters": _ORDER},
    {"name": "ping"},
]


def vocabulary() -> Vocabulary:
    return Vocabulary((None, None, None, None, *(text for text in small_vocabulary().texts if text)))


def made(tools: Any) -> TokenAutomaton:
    return compile_grammar({"tools": tools}, vocabulary(), [END], TOKENS)


def drawn(found: TokenAutomaton, count: int) -> list[list[int]]:
    g = random.Random(5)
    return [draw_tokens(found, g, g.choice([0, 20, 60, 150])) for _ in range(count)]


def spelled(text: str) -> list[int]:
    """A call in tokens: ``<``, ``>`` and ``'`` stand for the tokens of calls and quotes."""
    special = {"<": TOKENS.call, ">": TOKENS.call_end, "'": TOKENS.quote}
    byte_token = {data: token for token, data in enumerate(vocabulary().texts) if data and len(data) == 1}
    return [t for c in text for t in ([special[c]] if c in special else [byte_token[bytes([b])] for b in c.encode()])]


def accepted(found: TokenAutomaton, text: str) -> bool:
    state = found.start
    for token in spelled(text):
        state = found.step(state, token)
        if state < 0:
            return False
    return bool(found.accepting[state])


def test_calls_that_are_drawn_are_valid() -> None:
    judges = {"get_weather": Draft202012Validator(_WEATHER), "shop.order": Draft202012Validator(_ORDER)}
    seen = set()
    for ids in drawn(made({"functions": _FUNCTIONS, "choice": "required"}), 200):
        calls = read_calls(ids, vocabulary().texts, TOKENS)
        assert calls
        for name, arguments in calls:
            seen.add(name)
            if name == "ping":
                assert arguments == {}
            else:
                judges[name].validate(arguments)
    assert seen == {"get_weather", "shop.order", "ping"}


def test_random_parameters() -> None:
    compiled = 0
    for seed in range(40):
        g = random.Random(seed)
        part, _ = random_schema(g, 1)
        if any(name in json.dumps(part, ensure_ascii=False) for name in ("long name", '"ü"', 'q\\"')):
            continue  # keys that a call cannot write
        compiled += 1
        schema = {"type": "object", "properties": {"b_1": part, "A": {"type": "boolean"}}, "required": ["b_1"]}
        for ids in drawn(made({"functions": [{"name": "f", "parameters": schema}], "choice": "f"}), 8):
            for name, arguments in read_calls(ids, vocabulary().texts, TOKENS):
                assert name == "f"
                Draft202012Validator(schema).validate(arguments)
    assert compiled > 20


def test_how_a_call_is_written() -> None:
    found = made({"functions": _FUNCTIONS, "choice": "required"})
    weather = "<call:get_weather{days:3,place:'a \"b\\ {'}>"
    order = "<call:shop.order{colour:'red',express:true,Items:[{id:1,note:'x'},{id:2,note:null}]}>"
    for good in (weather, "<call:ping{}>", order, weather + order + "<call:ping{}>"):
        assert accepted(found, good), good
    for bad in (
        "",
        "text",
        "<call:ping{}",
        "call:ping{}",
        "<call:get_weather{place:'a',days:3}>",  # sorted
        "<call:get_weather{days:15,place:'a'}>",
        '<call:get_weather{place:"a"}>',
        "<call:pong{}>",
        "<call:ping{}>text",
        weather.replace(",", ", "),
    ):
        assert not accepted(found, bad), bad
    assert read_calls(spelled("hm " + weather + order), vocabulary().texts, TOKENS) == [
        ("get_weather", {"days": 3, "place": 'a "b\\ {'}),
        ("shop.order", {"colour": "red", "express": True, "Items": [{"id": 1, "note": "x"}, {"id": 2, "note": None}]}),
    ]


def test_choice_and_parallel() -> None:
    auto = made({"functions": _FUNCTIONS})
    assert all(accepted(auto, text) for text in ("", "any text\n", "text<call:ping{}><call:ping{}>", "<call:ping{}>"))
    assert not accepted(auto, "<call:ping{}>text")
    once = made({"functions": _FUNCTIONS, "parallel": False, "choice": "ping"})
    assert accepted(once, "<call:ping{}>")
    assert not accepted(once, "<call:ping{}><call:ping{}>")
    assert not accepted(once, "<call:get_weather{place:'a'}>")


def test_the_response_token_may_end_an_answer() -> None:
    found = compile_grammar({"tools": {"functions": _FUNCTIONS}}, vocabulary(), [END, 4], TOKENS)
    state = found.start
    for token in spelled("<call:ping{}>"):
        state = found.step(state, token)
    assert found.step(state, END) == found.step(state, 4) == found.end


@pytest.mark.parametrize(
    ("tools", "field", "allowed"),
    [
        (3, "", "an object"),
        ({"functions": []}, ".functions", "at least one function"),
        ({"functions": _FUNCTIONS, "mode": "any"}, ".mode", "functions, choice, parallel"),
        ({"functions": _FUNCTIONS, "choice": "pong"}, ".choice", "auto, required, none, get_weather"),
        ({"functions": _FUNCTIONS, "choice": ["ping"]}, ".choice", "auto, required"),
        ({"functions": _FUNCTIONS, "parallel": 1}, ".parallel", "true or false"),
        ({"functions": [{"name": "a b"}]}, ".functions[0].name", "a name of 1 to 64"),
        ({"functions": [{"name": "a"}, {"name": "a"}]}, ".functions[1].name", "that no other function has"),
        ({"functions": [{"name": "auto"}]}, ".functions[0].name", "not auto"),
        ({"functions": [{"name": "a", "x": 1}]}, ".functions[0]", "an object of name"),
        (
            {"functions": [{"name": "a", "parameters": {"type": "string"}}]},
            ".functions[0].parameters",
            '"type": "object"',
        ),
        (
            {"functions": [{"name": "a", "parameters": record(n={"type": "integer", "minimum": "1"})}]},
            ".functions[0].parameters at $.properties.n.minimum",
            "a number",
        ),
        (
            {"functions": [{"name": "a", "parameters": record(**{"a:b": {"type": "null"}})}]},
            '.functions[0].parameters at $.properties["a:b"]',
            "calls have their keys without quotes",
        ),
    ],
)
def test_what_is_refused(tools: Any, field: str, allowed: str) -> None:
    with pytest.raises(FieldError) as found:
        made(tools)
    assert found.value.field == "grammar.tools" + field
    assert allowed in found.value.allowed


def test_a_model_without_the_tokens_calls_no_tools() -> None:
    with pytest.raises(FieldError, match="grammar.tools: .*no tokens for calls"):
        compile_grammar({"tools": {"functions": _FUNCTIONS}}, vocabulary(), [END])


def test_a_call_that_is_cut_off_is_an_error() -> None:
    with pytest.raises(ValueError, match="not in list"):
        read_calls(spelled("<call:ping{}"), vocabulary().texts, TOKENS)
