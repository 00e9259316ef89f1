"""Whether the branches of oneOf can be told apart: a text of one must never be a value of another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trtllm_build.grammar.json_numbers import Interval, interval
from trtllm_build.grammar.schema_keywords import TYPES, Schema, same, type_of, types_of

_NUMERIC = ("integer", "number")
_DEEPEST = 6  # how far properties are looked into
_LENGTHS = {"string": ("minLength", "maxLength"), "array": ("minItems", "maxItems")}
# a schema as merged from its references; None where that fails
Resolve = Callable[[Any], Schema | None]


def apart(written: Schema, other: Schema, resolve: Resolve, deep: int = 0) -> bool:
    """Whether no value that is written under one schema is valid under the other, as far as can be proved.

    What is written has no properties but those that its schema names; what is valid may have more.

    Args:
        written: merged from its references.
        other: the same.
        resolve: merges a schema inside of either.
        deep: how many schemas this lies in.
    """
    if deep > _DEEPEST:
        return False
    for key in ("anyOf", "oneOf"):
        for one, two, first in ((written, other, True), (other, written, False)):
            if key in one:
                rest = {k: v for k, v in one.items() if k != key}
                branches = [resolve({"allOf": [rest, branch]}) for branch in one[key]]
                return all(
                    branch is not None
                    and (apart(branch, two, resolve, deep + 1) if first else apart(two, branch, resolve, deep + 1))
                    for branch in branches
                )
    if "enum" in written and "enum" in other:
        return not any(same(a, b) for a in written["enum"] for b in other["enum"])
    return all(
        _types_apart(a, b) or _values_apart(a, written, other, resolve, deep)
        for a in _written_types(written)
        for b in _valid_types(other)
    )


def _types_apart(a: str, b: str) -> bool:
    return a != b and {a, b} != set(_NUMERIC)


def _written_types(schema: Schema) -> set[str]:
    if "enum" in schema:
        return {type_of(value) for value in schema["enum"]}
    return set(types_of(schema)) or set(TYPES)


def _valid_types(schema: Schema) -> set[str]:
    if "enum" in schema:
        return {type_of(value) for value in schema["enum"]}
    return set(types_of(schema)) if "type" in schema else set(TYPES)


def _values_apart(kind: str, written: Schema, other: Schema, resolve: Resolve, deep: int) -> bool:
    """Whether values of one type are apart."""
    if kind in _LENGTHS:
        least, most = _LENGTHS[kind]
        return any(a.get(least, 0) > b[most] for a, b in ((written, other), (other, written)) if most in b)
    if kind in _NUMERIC:
        a, b = _interval(written), _interval(other)
        return any(x.least is not None and y.most is not None and x.least > y.most for x, y in ((a, b), (b, a)))
    return kind == "object" and _objects_apart(written, other, resolve, deep)


def _interval(schema: Schema) -> Interval:
    keys = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    return interval(False, *(schema.get(key) for key in keys))


def _objects_apart(written: Schema, other: Schema, resolve: Resolve, deep: int) -> bool:
    if "enum" in written or "enum" in other:
        return False
    mine, theirs = written.get("properties", {}), other.get("properties", {})
    closed = "properties" in written and written.get("additionalProperties", False) is False
    if closed and any(key not in mine for key in other.get("required", ())):
        return True
    if other.get("additionalProperties") is False and any(key not in theirs for key in written.get("required", ())):
        return True
    for key in {*written.get("required", ()), *other.get("required", ())}:
        if key in mine and key in theirs:
            a, b = resolve(mine[key]), resolve(theirs[key])
            if a is not None and b is not None and apart(a, b, resolve, deep + 1):
                return True
    return False
