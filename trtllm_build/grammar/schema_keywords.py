"""Which keywords of JSON Schema can be guaranteed, what they may be set to, and how an error names their place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from nemo_diffgemma.errors import FieldError
from trtllm_build.grammar.json_formats import FORMATS

Schema = Mapping[str, Any]
TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")
# what says nothing about the text
ANNOTATIONS = frozenset(
    [
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "discriminator",
        "nullable",
        "$schema",
        "$id",
        "$comment",
        "$defs",
        "definitions",
    ]
)
# the types that a keyword says something of
OF_TYPES = {
    "pattern": ("string",),
    "format": ("string",),
    "minLength": ("string",),
    "maxLength": ("string",),
    "minimum": ("integer", "number"),
    "maximum": ("integer", "number"),
    "exclusiveMinimum": ("integer", "number"),
    "exclusiveMaximum": ("integer", "number"),
    "multipleOf": ("integer", "number"),
    "items": ("array",),
    "prefixItems": ("array",),
    "minItems": ("array",),
    "maxItems": ("array",),
    "uniqueItems": ("array",),
    "properties": ("object",),
    "required": ("object",),
    "additionalProperties": ("object",),
}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_number(value: Any) -> bool:
    """Whether a value is a number of JSON."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _is_schema(value: Any) -> bool:
    return isinstance(value, bool | Mapping)


def _is_type(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(x, str) and x in TYPES for x in value) and len(set(value)) == len(value)
    return isinstance(value, str) and value in TYPES


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, str) for x in value) and len(set(value)) == len(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _are_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


_COUNT = (_is_count, "an integer >= 0")
_NUMBER = (is_number, "a number")
_TEXT = (_is_text, "a string")
_BOOL = (_is_bool, "true or false")
_OBJECT = (_is_object, "an object")
_BRANCHES = (_are_schemas, "an array of at least one schema")
_SCHEMAS = (
    lambda value: isinstance(value, Mapping) and all(map(_is_schema, value.values())),
    "an object of schemas",
)
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, f"one of {', '.join(TYPES)}, or an array of different ones"),
    "enum": (lambda value: isinstance(value, list) and bool(value), "an array of at least one value"),
    "const": (lambda _: True, "any value"),
    "properties": _SCHEMAS,
    "required": (_is_names, "an array of different names of properties"),
    "additionalProperties": (_is_schema, "true, false or a schema"),
    "items": (_is_schema, "a schema; a row of them is prefixItems"),
    "prefixItems": _BRANCHES,
    "minItems": _COUNT,
    "maxItems": _COUNT,
    "minLength": _COUNT,
    "maxLength": _COUNT,
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    "exclusiveMinimum": _NUMBER,
    "exclusiveMaximum": _NUMBER,
    "multipleOf": (lambda value: is_number(value) and value > 0, "a number > 0"),
    "uniqueItems": (lambda value: value is False, "false: a grammar cannot tell whether items are different"),
    "anyOf": _BRANCHES,
    "oneOf": _BRANCHES,
    "allOf": _BRANCHES,
    "$ref": (
        lambda value: isinstance(value, str) and value.startswith("#"),
        "a place in the same schema (#/$defs/...)",
    ),
    "pattern": _TEXT,
    "format": (lambda value: isinstance(value, str) and value in FORMATS, f"one of {', '.join(FORMATS)}"),
    "nullable": _BOOL,
    "$defs": _SCHEMAS,
    "definitions": _SCHEMAS,
    "title": _TEXT,
    "description": _TEXT,
    "default": (lambda _: True, "any value"),
    "examples": (lambda value: isinstance(value, list), "an array"),
    "deprecated": _BOOL,
    "readOnly": _BOOL,
    "writeOnly": _BOOL,
    "discriminator": _OBJECT,
    "$schema": _TEXT,
    "$id": _TEXT,
    "$comment": _TEXT,
}


def below(path: str, *keys: str | int) -> str:
    """The path of what a schema has under these keys, one in the other."""
    for key in keys:
        if isinstance(key, int):
            path += f"[{key}]"
        else:
            plain = key.removeprefix("$").isidentifier()
            path += f".{key}" if plain else f"[{json.dumps(key, ensure_ascii=False)}]"
    return path


def refusal(field: str, path: str, value: Any, allowed: str, fix: str) -> FieldError:
    """The error about one place of a schema."""
    return FieldError(field=f"{field} at {path}", value=value, allowed=allowed, fix=fix)


def check(schema: Any, field: str, path: str) -> None:
    """Look at one schema's own keywords, not at the schemas inside.

    Raises:
        FieldError: for an unknown keyword, a value of the wrong kind, a keyword that its type has no use for.
    """
    if not _is_schema(schema):
        raise refusal(field, path, schema, "a schema: an object, true or false", "write one")
    if isinstance(schema, bool):
        return
    for key, value in schema.items():
        if key not in _CHECKS:
            known = ", ".join(k for k in _CHECKS if k not in ANNOTATIONS)
            raise refusal(field, below(path, key), value, f"of all keywords these: {known}", "leave it out")
        good, allowed = _CHECKS[key]
        if not good(value):
            raise refusal(field, below(path, key), value, allowed, "correct it")
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        for key in schema:
            if key in OF_TYPES and not set(types) & set(OF_TYPES[key]):
                allowed = f"no {key} for the type {' or '.join(types)}: it is for {' or '.join(OF_TYPES[key])}"
                raise refusal(field, below(path, key), schema[key], allowed, "leave it out, or correct the type")
    if schema.get("nullable") and "type" not in schema:
        fix = 'write {"anyOf": [..., {"type": "null"}]}'
        raise refusal(field, below(path, "nullable"), True, "nullable beside a type", fix)
    for least, most in (("minLength", "maxLength"), ("minItems", "maxItems"), ("minimum", "maximum")):
        if least in schema and most in schema and schema[least] > schema[most]:
            allowed = f"at most {most}, {schema[most]}"
            raise refusal(field, below(path, least), schema[least], allowed, "correct one of the two")


def types_of(schema: Schema) -> tuple[str, ...]:
    """The types that are written for a schema without enum, const, anyOf and oneOf; empty for any type at all.

    Without ``type`` they are those that its keywords speak of: the schema would allow every other type as well.
    """
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if schema.get("nullable") and "null" not in types:
            types = [*types, "null"]
    else:
        spoken = {kind for key in schema for kind in OF_TYPES.get(key, ())} - {"integer"}
        types = [kind for kind in TYPES if kind in spoken]
    return tuple(kind for kind in types if not (kind == "integer" and "number" in types))


def type_of(value: Any) -> str:
    """The type of a value; a number without a fraction is an integer, however it is written."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if value == math.floor(value) else "number"
    return {str: "string", list: "array", dict: "object", type(None): "null"}[type(value)]


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal to JSON Schema: 1 and 1.0 are, 1 and true are not."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a is b or a == b)
