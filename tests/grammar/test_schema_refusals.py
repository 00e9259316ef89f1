"""What cannot be guaranteed is refused with the schema's path, the value and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_diffgemma.errors import FieldError
from tests.grammar.schemas import record
from tests.grammar.support import END, small_vocabulary
from trtllm_build.grammar.compile import compile_grammar
from trtllm_build.grammar.schema_keywords import below

_DEEP: Any = {"type": "integer"}
for _ in range(100):
    _DEEP = {"type": "array", "items": _DEEP}


def refused(schema: Any) -> FieldError:
    with pytest.raises(FieldError) as found:
        compile_grammar({"json_schema": schema}, small_vocabulary(), [END])
    assert "\n" not in str(found.value)
    return found.value


@pytest.mark.parametrize(
    ("schema", "path", "allowed"),
    [
        (record(a={"type": "integer", "minimum": "3"}), "$.properties.a.minimum", "a number"),
        (record(a={"type": "integer", "minimum": True}), "$.properties.a.minimum", "a number"),
        ({"type": "integer", "maximum": float("nan")}, "$.maximum", "a number"),
        (record(**{"a b": {"type": "text"}}), '$.properties["a b"].type', "one of string, number"),
        ({"type": []}, "$.type", "one of string"),
        ({"type": ["string", "string"]}, "$.type", "an array of different ones"),
        ({"type": None}, "$.type", "one of string"),
        ({"anyOf": [{"type": "null"}, {"nott": {}}]}, "$.anyOf[1].nott", "of all keywords these: type"),
        ({"type": "object", "patternProperties": {}}, "$.patternProperties", "of all keywords these"),
        ({"if": {}, "then": {}}, "$.if", "of all keywords these"),
        ({"type": "array", "contains": {}}, "$.contains", "of all keywords these"),
        ({"type": "object", "minProperties": 1}, "$.minProperties", "of all keywords these"),
        ({"type": "array", "uniqueItems": True}, "$.uniqueItems", "cannot tell whether items are different"),
        ({"type": "array", "items": [{"type": "string"}]}, "$.items", "prefixItems"),
        ({"type": "array", "items": {"type": "strin"}}, "$.items.type", "one of string"),
        ({"type": "array", "prefixItems": [{}, {"x": 1}]}, "$.prefixItems[1].x", "of all keywords these"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "$.minItems", "at most maxItems, 1"),
        ({"type": "array", "prefixItems": [{}], "minItems": 2}, "$.minItems", "at most 1, the items of prefixItems"),
        ({"type": "array", "minItems": -1}, "$.minItems", "an integer >= 0"),
        ({"type": "array", "items": False, "minItems": 1}, "$.items", "a schema that some value fits"),
        ({"type": "string", "minLength": 1.5}, "$.minLength", "an integer >= 0"),
        ({"type": "string", "minLength": 4, "maxLength": 3}, "$.minLength", "at most maxLength, 3"),
        ({"type": "string", "pattern": "(?=a)"}, "$.pattern", "without look-ahead"),
        ({"type": "string", "pattern": "^abc$", "maxLength": 2}, "$.pattern", "that some text fits"),
        ({"type": "string", "pattern": "^x$", "format": "date"}, "$.pattern", "that some text fits"),
        ({"type": "string", "pattern": "^\x01$"}, "$.pattern", "a pattern that some text matches"),
        ({"type": "string", "pattern": 3}, "$.pattern", "a string"),
        ({"type": "string", "format": "color"}, "$.format", "one of date, time"),
        ({"type": "integer", "format": "int32"}, "$.format", "one of date"),
        ({"type": "integer", "minLength": 3}, "$.minLength", "no minLength for the type integer"),
        ({"type": ["null", "string"], "minimum": 3}, "$.minimum", "it is for integer or number"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "$.minimum", "at most maximum, 4"),
        (
            {"type": "integer", "exclusiveMinimum": 5, "exclusiveMaximum": 6},
            "$.exclusiveMinimum",
            "bounds that some number",
        ),
        ({"type": "integer", "minimum": 10**18}, "$.minimum", "at most 18 digits"),
        ({"type": "number", "minimum": 10**400}, "$.minimum", "at most 18 digits"),
        ({"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 6}, "$.minimum", "multipleOf 7"),
        ({"type": "number", "multipleOf": 0.01}, "$.multipleOf", "an integer from 1 to 100"),
        ({"type": "integer", "multipleOf": 0}, "$.multipleOf", "a number > 0"),
        ({"enum": []}, "$.enum", "at least one value"),
        ({"enum": ["a"], "type": "integer"}, "$.enum", "values that the rest of it allows"),
        ({"enum": ["abc"], "maxLength": 2}, "$.enum", "values that the rest of it allows"),
        ({"const": 1, "enum": [2]}, "$.enum", "values that the rest of it allows"),
        ({"const": float("inf")}, "$", "a finite number"),
        ({"const": "\ud800"}, "$", "no lone surrogates"),
        ({"$ref": "#/$defs/X"}, "$.$ref", "a place that this schema has"),
        ({"$ref": "#X"}, "$.$ref", "anchors are not followed"),
        ({"$ref": "other.json"}, "$.$ref", "a place in the same schema"),
        ({"$ref": "#"}, "$.$ref", "a schema that can end"),
        (record(n={"$ref": "#"}), "$.properties.n.$ref", "a schema that can end"),
        (
            {"$defs": {"a": {"items": {"$ref": "#/$defs/a"}, "minItems": 1}}, "$ref": "#/$defs/a"},
            "$.$defs.a.items.$ref",
            "can end",
        ),
        ({"$defs": [], "type": "null"}, "$.$defs", "an object of schemas"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "$.type", "has in common"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "$.pattern", "one pattern"),
        (
            {"allOf": [record(a={}) | {"additionalProperties": False}, record(b={})]},
            "$.additionalProperties",
            "combined without",
        ),
        (
            {"oneOf": [{"type": "integer"}, {"type": "number"}]},
            "$.oneOf",
            "branches that no value can share: [0] and [1]",
        ),
        ({"oneOf": [record(a={}), record(a={}, b={})]}, "$.oneOf", "branches that no value can share"),
        ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "$.oneOf", "branches that no value can share"),
        ({"oneOf": [{"type": "integer", "maximum": 3}, {"minimum": 3}]}, "$.oneOf", "branches that no value can share"),
        ({"anyOf": [False, False]}, "$.anyOf[1]", "a schema that some value fits"),
        ({"anyOf": []}, "$.anyOf", "at least one schema"),
        ({"required": ["a"], "properties": {}}, "$.required[0]", "a name among properties: there are none"),
        ({"required": ["a", "a"], "properties": {"a": {}}}, "$.required", "different names"),
        ({"type": "object", "additionalProperties": 3}, "$.additionalProperties", "true, false or a schema"),
        ({"type": "string", "nullable": "yes"}, "$.nullable", "true or false"),
        ({"anyOf": [{}], "nullable": True}, "$.nullable", "nullable beside a type"),
        ({"properties": {"a": 3}}, "$.properties", "an object of schemas"),
        ({"type": "string", "description": 3}, "$.description", "a string"),
        (False, "$", "a schema that some value fits"),
        ("string", "$", "a schema: an object"),
        (record(a={"type": "string", "maxLength": 60_000}), "$.properties.a", "at most 200000 steps|in 2 s"),
        (
            record(a={"type": "string", "pattern": "a.{9}b.*a.{18}c"}),
            "$.properties.a.pattern",
            "at most 20000 states|in 2 s",
        ),
        ({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}, "$.allOf[0].$ref", "comes back to itself 5 times"),
        (_DEEP, "$" + ".items" * 61, "at most 60 deep"),
    ],
)
def test_refused_with_its_path(schema: Any, path: str, allowed: str) -> None:
    error = refused(schema)
    assert error.field == f"grammar.json_schema at {path}"
    assert any(part in error.allowed for part in allowed.split("|")), error.allowed
    assert error.fix


def test_a_branch_that_nothing_fits_is_left_out() -> None:
    vocabulary = small_vocabulary()
    for schema in (
        {"anyOf": [False, {"const": "a"}]},
        {"type": "string", "anyOf": [{"type": "integer"}, {"const": "a"}]},
    ):
        found = compile_grammar({"json_schema": schema}, vocabulary, [END])
        assert found.states == 5  # three bytes and the end
    closed = compile_grammar({"json_schema": {"properties": {"a": False}}}, vocabulary, [END])
    assert closed.distance[closed.start] == 2  # {}


def test_paths() -> None:
    assert below("$", "properties", "a", "anyOf", 0, "$ref") == "$.properties.a.anyOf[0].$ref"
    assert below("$", "properties", 'x"y') == '$.properties["x\\"y"]'
