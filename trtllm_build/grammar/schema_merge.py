"""Two schemas become one that says what both say: for allOf, and for what stands beside $ref, anyOf and oneOf."""

from __future__ import annotations

import math
from typing import Any

from nemo_diffgemma.errors import FieldError
from trtllm_build.grammar.schema_keywords import ANNOTATIONS, Schema, below, refusal, same


class Impossible(Exception):
    """No value fits: harmless in a branch or an optional property, which are left out; else ``error`` is raised."""

    def __init__(self, error: FieldError):
        super().__init__(str(error))
        self.error = error


def constraints(schema: Schema) -> dict[str, Any]:
    """A schema without what says nothing about the text; ``nullable`` becomes a type."""
    found = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
    if schema.get("nullable"):
        types = found["type"] if isinstance(found["type"], list) else [found["type"]]
        found["type"] = [*types, *(["null"] if "null" not in types else [])]
    if "const" in found:
        value = found.pop("const")
        known = found.get("enum", [value])
        found["enum"] = [value] if any(same(value, other) for other in known) else []
    return found


def merge(a: Schema, b: Schema, field: str, path: str) -> dict[str, Any]:
    """What both of two schemas say, neither of which has ``$ref``, ``allOf``, ``const`` or annotations.

    Raises:
        FieldError: for keywords of both that no single one can say.
        Impossible: when their types have nothing in common.
    """
    found = dict(a)
    for key, value in b.items():
        if key not in found:
            found[key] = value
        elif key in _SMALLEST:
            found[key] = min(found[key], value)
        elif key in _LARGEST:
            found[key] = max(found[key], value)
        elif key == "multipleOf" and isinstance(value, int) and isinstance(found[key], int):
            found[key] = math.lcm(found[key], value)
        elif key in _MERGED:
            found[key] = _MERGED[key](found[key], value)
        elif not same(found[key], value):
            allowed = f"one {key}: {found[key]!r} and this cannot be made one"
            raise refusal(field, below(path, key), value, allowed, f"write one schema with one {key}")
    if "additionalProperties" in found:
        _check_closed(a, b, field, path)
    if found.get("type") == []:
        allowed = f"a type that {a['type']!r} has in common with it"
        raise Impossible(refusal(field, below(path, "type"), b["type"], allowed, "correct one of the two"))
    return found


def _check_closed(a: Schema, b: Schema, field: str, path: str) -> None:
    """``additionalProperties`` of one would speak of the properties of the other."""
    for one, other in ((a, b), (b, a)):
        more = [key for key in other.get("properties", ()) if key not in one.get("properties", ())]
        if one.get("additionalProperties", True) is not True and more:
            raise refusal(
                field,
                below(path, "additionalProperties"),
                one["additionalProperties"],
                f"schemas that are combined without it: it would speak of {', '.join(more)} too",
                "leave it out: objects have no properties but those that a schema names",
            )


def _types(a: Any, b: Any) -> list[str]:
    left, right = (value if isinstance(value, list) else [value] for value in (a, b))
    both = [kind for kind in left if kind in right]
    if "integer" not in both and (
        ("integer" in left and "number" in right) or ("number" in left and "integer" in right)
    ):
        both.append("integer")
    return both


def _properties(a: Schema, b: Schema) -> dict[str, Any]:
    return {key: {"allOf": [a[key], b[key]]} if key in a and key in b else {**a, **b}[key] for key in (*a, *b)}


def _all(a: Any, b: Any) -> Any:
    if a is True or b is True:
        return b if a is True else a
    return False if a is False or b is False else {"allOf": [a, b]}


_SMALLEST = ("maxLength", "maxItems", "maximum", "exclusiveMaximum")
_LARGEST = ("minLength", "minItems", "minimum", "exclusiveMinimum")
_MERGED: dict[str, Any] = {
    "type": _types,
    "enum": lambda a, b: [value for value in a if any(same(value, other) for other in b)],
    "required": lambda a, b: list(dict.fromkeys((*a, *b))),
    "properties": _properties,
    "items": _all,
    "additionalProperties": _all,
}
