"""Schemas with values that are valid and written, valid in no case, or valid and not written (with the reason)."""

from __future__ import annotations

from typing import Any


def record(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    """An object with these properties, all required unless said otherwise."""
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names}


_TREE = record(value={"type": "integer"}, kids={"type": "array", "items": {"$ref": "#/$defs/tree"}})
_EITHER = {
    "oneOf": [
        {"$ref": "#/$defs/cat"},
        {"$ref": "#/$defs/dog"},
    ],
    "discriminator": {"propertyName": "kind"},
    "$defs": {
        "cat": record(kind={"const": "cat", "type": "string"}, lives={"type": "integer"}),
        "dog": record(kind={"const": "dog", "type": "string"}, name={"type": "string"}),
    },
}
# schema, values that its grammar writes, values that it does not write
CASES: list[tuple[Any, list[Any], list[Any]]] = [
    ({"type": "string"}, ["", "a", 'quote " and \\', "line\nend\ttab", "日本 😀", "\x7f"], [1, None]),
    ({"type": "string", "minLength": 2}, ["ab", "日本", "😀😀"], ["", "a", "😀"]),
    ({"type": "string", "maxLength": 3}, ["", "abc", "日本語", '"\\\n'], ["abcd"]),
    ({"type": "string", "minLength": 2, "maxLength": 2}, ["ab", "😀é"], ["a", "abc"]),
    ({"type": "string", "pattern": "^[a-z]+$"}, ["a", "abc"], ["", "A", "a b"]),
    ({"type": "string", "pattern": "b+"}, ["b", "abc", "xbbx", "日b"], ["", "ac"]),
    ({"type": "string", "pattern": '^a"b\\\\c$'}, ['a"b\\c'], ["ab", 'a"b']),
    ({"type": "string", "pattern": '["\\\\]'}, ['"', "a\\b", 'x"y'], ["ab"]),
    ({"type": "string", "pattern": "^.{2,4}$", "maxLength": 3}, ["ab", "日本語"], ["a", "abcd", "a\nb"]),
    ({"type": "string", "pattern": "^(ja|nein)$|^x", "minLength": 3}, ["nein", "xyz"], ["ja", "xy", "yes"]),
    ({"type": "string", "pattern": "^\\d{2}-\\w+\\s?$"}, ["12-ab", "12-a_ "], ["1-a", "12-"]),
    ({"type": "string", "pattern": "^[^\\d\\s]*$"}, ["", "日本", "a-b"], ["a1", "a b"]),
    ({"type": "string", "format": "date"}, ["2024-02-29", "1999-12-31"], ["2023-02-29", "2024-04-31", "24-01-01"]),
    ({"type": "string", "format": "date", "pattern": "^2024-02-"}, ["2024-02-29"], ["2023-02-01", "2024-02-30"]),
    ({"type": "string", "format": "time"}, ["12:30:00Z", "23:59:59.5+01:00"], ["24:00:00Z", "12:30"]),
    ({"type": "string", "format": "date-time"}, ["2024-02-29T12:30:00Z"], ["2023-02-29T12:30:00Z", "2024-01-01"]),
    ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
    ({"type": "string", "format": "email"}, ["a.b+c@example.org"], ["a", "@b.c", "a@b"]),
    ({"type": "string", "format": "ipv4"}, ["127.0.0.1", "255.255.255.255"], ["256.1.1.1", "01.1.1.1"]),
    ({"type": "string", "format": "ipv6"}, ["::1", "fe80::1:2", "::ffff:1.2.3.4"], ["1::2::3", ":1", "1.2.3.4"]),
    ({"type": "string", "format": "hostname"}, ["a.example.org", "localhost"], ["-a", "a..b"]),
    ({"type": "string", "format": "uri"}, ["https://a.org/b?c=d#e", "mailto:a@b.c"], ["a b", "//a"]),
    ({"type": "string", "format": "duration"}, ["P1DT2H", "PT5M", "P3W"], ["P", "PT", "1D"]),
    ({"type": "integer"}, [0, -1, 999999999999999999], [1.5, "1", True]),
    ({"type": "integer", "minimum": 0}, [0, 17], [-1]),
    ({"type": "integer", "minimum": -5, "maximum": 12}, [-5, 0, 12], [-6, 13, 120]),
    ({"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 101}, [10, 100], [9, 101, 1]),
    ({"type": "integer", "multipleOf": 5, "minimum": 1}, [5, 100], [0, 7, -5]),
    ({"type": "integer", "minimum": 0, "maximum": 2**63 - 1}, [0, 10**18 - 1], [-1]),
    ({"type": "number"}, [0, -1.5, 1e-07, 1.5e16, 3.141592653589793], ["1", None]),
    ({"type": "number", "minimum": 0, "maximum": 1}, [0, 1, 0.5, 0.25, 1.0], [-0.1, 1.1, 2]),
    ({"type": "number", "exclusiveMinimum": 0.3, "exclusiveMaximum": 12.5}, [0.31, 12.49, 7], [0.3, 12.5, -1]),
    ({"type": "number", "minimum": -273.15}, [-273.15, -0.5, 12.5], [-273.16, -1000]),
    ({"type": "number", "maximum": -0.5}, [-0.5, -17], [0, -0.49, 1]),
    ({"type": "number", "multipleOf": 7}, [0, 14, -21], [1, 8]),
    ({"type": "boolean"}, [True, False], [0, "true"]),
    ({"type": "null"}, [None], [False]),
    ({"type": ["string", "null"], "minLength": 1}, ["a", None], ["", 1]),
    ({"type": ["integer", "number"]}, [1, 1.5], ["1"]),
    (
        {"enum": ["a", 1, 1.5, None, True, {"a": [1, "b"]}, "ü\n"]},
        ["a", 1, 1.5, None, True, {"a": [1, "b"]}, "ü\n"],
        ["b"],
    ),
    ({"enum": ["a", "bcd", 7], "type": "string", "maxLength": 2}, ["a"], ["bcd", 7]),
    ({"const": {"a": 1, "b": []}}, [{"a": 1, "b": []}], [{"a": 1}]),
    ({"type": "array"}, [[], [1, ["a"], {}]], [{}]),
    ({"type": "array", "items": {"type": "integer"}}, [[], [1], [1, 2, 3]], [["a"], [1, "a"]]),
    (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
        [[True] * 2, [False] * 3],
        [[], [True], [True] * 4],
    ),
    ({"type": "array", "items": {"type": "null"}, "minItems": 3}, [[None] * 3, [None] * 7], [[None] * 2]),
    ({"type": "array", "maxItems": 0}, [[]], [[1]]),
    (
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "minItems": 2},
        [["a", 1]],
        [["a"], [1, "a"]],
    ),
    (
        {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}, "maxItems": 4},
        [[], [1], [1, 2], [1, 2, 3, 3]],
        [[2], [1, 2, 3, 3, 3]],
    ),
    (record(name={"type": "string"}, age={"type": "integer"}), [{"name": "a", "age": 1}], [{"name": "a"}, {}]),
    (
        record([], a={"const": 1}, b={"const": 2}, c={"const": 3}),
        [{}, {"a": 1}, {"b": 2}, {"c": 3}, {"a": 1, "c": 3}, {"a": 1, "b": 2, "c": 3}],
        [{"b": 1}],
    ),
    (
        record(["b"], a={"const": 1}, b={"const": 2}, c={"const": 3}),
        [{"b": 2}, {"a": 1, "b": 2}, {"b": 2, "c": 3}],
        [{}, {"a": 1}],
    ),
    ({"type": "object", "properties": {}}, [{}], [1]),
    ({"type": "object"}, [{}, {"a": {"b": [1]}}], [[]]),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"a": 1, 'b"\\': 2}], [{"a": "b"}]),
    (
        record(["a"], a={"type": "integer"}) | {"additionalProperties": {"type": "string"}},
        [{"a": 1}, {"a": 1, "b": "c", "aa": "d"}],
        [{"a": "x"}, {"b": "c"}, {"a": 1, "b": 1}],
    ),
    (
        record(["a"], a={"type": "integer"}) | {"additionalProperties": True},
        [{"a": 1}, {"a": 1, "z": [1, {}]}],
        [{"z": 1}],
    ),
    ({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}]}, [1, "a"], ["ab", None]),
    (
        {
            "type": "object",
            "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        [{"a": "x"}, {"b": "x"}, {"a": "x", "b": "y"}],
        [{}],
    ),
    (
        {"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 5}, {"type": "null"}]},
        [3, 5, None],
        [4],
    ),
    (_EITHER, [{"kind": "cat", "lives": 9}, {"kind": "dog", "name": "x"}], [{"kind": "cat", "name": "x"}]),
    (
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"properties": {"a": {"minimum": 3}, "b": {"type": "null"}}},
            ]
        },
        [{"a": 3}, {"a": 4, "b": None}],
        [{"a": 2}, {}],
    ),
    (
        {"$ref": "#/$defs/tree", "$defs": {"tree": _TREE}},
        [{"value": 1, "kids": []}, {"value": 1, "kids": [{"value": 2, "kids": [{"value": 3, "kids": []}]}]}],
        [{"value": 1}],
    ),
    ({"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"type": "boolean"}}}, [True], [1]),
    (
        record(next={"anyOf": [{"$ref": "#"}, {"type": "null"}]}, v={"enum": [1, 2]}),
        [{"next": None, "v": 1}, {"next": {"next": None, "v": 2}, "v": 1}],
        [{"v": 1}],
    ),
    (
        {
            "properties": {"näme": {"type": "string"}, 'q"': {"type": "null"}},
            "required": ["näme"],
            "title": "x",
            "description": "y",
        },
        [{"näme": "ö"}, {"näme": "", 'q"': None}],
        [{}],
    ),
    (
        record(
            where=record(lat={"type": "number", "minimum": -90, "maximum": 90}),
            tags={"type": "array", "items": {"enum": ["a", "b"]}},
        ),
        [{"where": {"lat": -12.5}, "tags": ["a", "b"]}],
        [{"where": {"lat": 91}, "tags": []}],
    ),
]
