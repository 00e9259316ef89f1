"""What a schema's automaton accepts is valid to json and jsonschema, and valid values are accepted."""

from __future__ import annotations

import datetime
import json
import random
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from tests.grammar.random_schemas import random_schema
from tests.grammar.schemas import CASES
from tests.grammar.support import END, draw, small_vocabulary
from trtllm_build.grammar.budget import Budget
from trtllm_build.grammar.compile import compile_grammar
from trtllm_build.grammar.determinise import automaton
from trtllm_build.grammar.json_schema import LEVELS, schema_expression
from trtllm_build.grammar.notation import JSON

_FORMATS = FormatChecker(["date", "email", "ipv4", "ipv6", "uuid"])
_SEPARATORS = {"spaced": (", ", ": "), "compact": (",", ":"), "flexible": ("\n , ", " :  ")}


@_FORMATS.checks("date-time", raises=ValueError)
def _is_moment(text: object) -> bool:
    return not isinstance(text, str) or datetime.datetime.fromisoformat(text).tzinfo is not None


@_FORMATS.checks("time", raises=ValueError)
def _is_time(text: object) -> bool:
    return not isinstance(text, str) or datetime.time.fromisoformat(text).tzinfo is not None


def written(value: Any, whitespace: str) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=_SEPARATORS[whitespace]).encode()


def check(schema: Any, whitespace: str, values: list[Any], g: random.Random, count: int) -> None:
    """Texts drawn from the automaton are valid, and these valid values are accepted."""
    judge = Draft202012Validator(schema, format_checker=_FORMATS)
    judge.check_schema(schema)
    vocabulary = small_vocabulary()
    found = compile_grammar({"json_schema": schema, "whitespace": whitespace}, vocabulary, [END])
    byte_token = {text: token for token, text in enumerate(vocabulary.texts) if text and len(text) == 1}
    for _ in range(count):
        text = draw(found, vocabulary, g, g.choice([0, 8, 40, 120]))
        value = json.loads(text)
        judge.validate(value)
    for value in values:
        judge.validate(value)
        state = found.start
        for byte in written(value, whitespace):
            state = found.step(state, byte_token[bytes([byte])])
            assert state >= 0, (value, byte)
        assert found.accepting[state], value


@pytest.mark.parametrize("number", range(len(CASES)))
def test_both_directions(number: int) -> None:
    schema, values, others = CASES[number]
    g = random.Random(number)
    for whitespace in _SEPARATORS:
        check(schema, whitespace, values, g, 12)
    texts = automaton(schema_expression(schema, "json_schema", JSON["spaced"], _budget()), _budget())
    for value in others:
        assert not texts.accepts(written(value, "spaced")), value


@pytest.mark.parametrize("seed", range(40))
def test_random_schemas(seed: int) -> None:
    g = random.Random(seed)
    schema, make = random_schema(g)
    judge = Draft202012Validator(schema, format_checker=_FORMATS)
    # what is drawn may break a bound that happens to be written
    values = [value for value in (make(g) for _ in range(20)) if judge.is_valid(value)]
    check(schema, g.choice(list(_SEPARATORS)), values, g, 8)


def test_bounds_of_numbers_at_their_edges() -> None:
    """Every text of few digits, against comparison in Python."""
    g = random.Random(8)
    texts = [
        f"{sign}{whole}{fraction}"
        for sign in ("", "-")
        for whole in range(0, 130, 3)
        for fraction in ("", ".0", ".25", ".3", ".50", ".99")
    ]
    for _ in range(25):
        low, high = sorted(g.choice([-100, -12.3, -3, -0.25, 0, 0.3, 0.5, 7, 12.25, 99, 100.5]) for _ in range(2))
        kind = g.choice(["integer", "number"])
        keys = g.choice(
            [("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum"), ("minimum",), ("exclusiveMaximum",)]
        )
        schema = {"type": kind, **{key: high if "ax" in key else low for key in keys}}
        judge = Draft202012Validator(schema)
        if not any(judge.is_valid(json.loads(text)) for text in texts):
            continue
        found = automaton(schema_expression(schema, "json_schema", JSON["spaced"], _budget()), _budget())
        for text in texts:
            expected = judge.is_valid(json.loads(text)) and not (kind == "integer" and ("." in text or text == "-0"))
            assert found.accepts(text.encode()) == expected, (schema, text)


def test_an_exclusive_bound_holds_for_doubles_too() -> None:
    """0.30000000000000001 is a text above 0.3, and 0.3 as a double."""
    schema = {"type": "number", "exclusiveMinimum": 0.3, "maximum": 2**53 + 1}
    found = automaton(schema_expression(schema, "json_schema", JSON["spaced"], _budget()), _budget())
    assert not found.accepts(b"0.30000000000000001")
    assert found.accepts(b"0.3000000000000001")
    assert found.accepts(b"9007199254740992")
    assert not found.accepts(b"9007199254740994")


def test_keys_stand_in_the_order_of_the_schema() -> None:
    properties = {"b": {"const": 1}, "a": {"const": 2}}
    for names in (["b", "a"], ["a", "b"]):
        schema = {"type": "object", "properties": {n: properties[n] for n in names}, "required": ["a", "b"]}
        found = automaton(schema_expression(schema, "json_schema", JSON["spaced"], _budget()), _budget())
        assert found.accepts(written({n: properties[n]["const"] for n in names}, "spaced"))
        assert not found.accepts(written({n: properties[n]["const"] for n in reversed(names)}, "spaced"))


def test_recursion_and_free_json_end_at_a_stated_depth() -> None:
    tree: dict[str, Any] = {"properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}, "required": ["kids"]}
    for schema, wrap, inner in (
        (tree, lambda x: {"kids": [x]}, {"kids": []}),
        ({"type": "object"}, lambda x: {"k": x}, {}),
    ):
        found = automaton(schema_expression(schema, "json_schema", JSON["spaced"], _budget()), _budget())
        value: Any = inner
        for depth in range(1, LEVELS + 2):
            assert found.accepts(written(value, "spaced")) == (depth <= LEVELS), depth
            value = wrap(value)


def test_a_base_that_many_parts_refer_to_is_no_recursion() -> None:
    base = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
    heirs = {f"h{i}": {"allOf": [{"$ref": "#/$defs/base"}]} for i in range(LEVELS + 3)}
    schema = {"$defs": {"base": base, **heirs}, "allOf": [{"$ref": f"#/$defs/{name}"} for name in heirs]}
    found = automaton(schema_expression(schema, "json_schema", JSON["spaced"], _budget()), _budget())
    assert found.accepts(b'{"a": 1}')
    assert not found.accepts(b"{}")


def test_the_key_of_an_other_property_is_none_of_the_named_ones() -> None:
    schema = {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    found = automaton(schema_expression(schema, "json_schema", JSON["spaced"], _budget()), _budget())
    assert found.accepts(b'{"a": 1, "aa": "x"}')
    assert found.accepts(b'{"": "x"}')
    for hidden in (b'{"a": "x"}', b'{"\\u0061": "x"}', b'{"b": "x", "a": 1}'):
        assert not found.accepts(hidden)


def test_a_free_string_takes_every_escape() -> None:
    found = automaton(schema_expression({"type": "string"}, "json_schema", JSON["spaced"], _budget()), _budget())
    for text in (b'"\\u00e9\\u20AC\\/\\b"', b'"\\ud7ff\\ue000"', json.dumps("é\x01\u2028").encode()):
        assert found.accepts(text)
        json.loads(text)
    for text in (b'"\\ud83d\\ude00"', b'"\\ud800"', b'"\\x"', b'"\n"', b'"\\u12"', b'"\xff"'):
        assert not found.accepts(text)


def test_numbers_stay_finite() -> None:
    found = automaton(schema_expression({"type": "number"}, "json_schema", JSON["spaced"], _budget()), _budget())
    assert found.accepts(b"9" * 18 + b"e289")
    assert json.loads(b"9" * 18 + b"e289") < float("inf")
    for text in (b"1e290", b"1e999", b"1" * 19, b"01", b"1.", b".5", b"+1", b"1e", b"NaN"):
        assert not found.accepts(text)


def _budget() -> Budget:
    return Budget("json_schema", "a test", seconds=60)
