"""Schemas drawn at random, each with a way to draw valid values."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Make = Callable[[random.Random], Any]
_CHARACTERS = 'abcXYZ 019"\\/\n\té日😀{}[],:'


def text(g: random.Random, least: int = 0, most: int = 8) -> str:
    """A string of JSON's awkward characters."""
    return "".join(g.choice(_CHARACTERS) for _ in range(g.randint(least, most)))


def random_schema(g: random.Random, depth: int = 3) -> tuple[dict[str, Any], Make]:
    """A schema at most ``depth`` deep and what draws a value of it."""
    leaves = [_string, _pattern, _integer, _number, _constant, _enum, _date]
    return g.choice(leaves if depth == 0 else [*leaves, _array, _object, _object, _either, _tuple])(g, depth)


def _string(g: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    least, most = sorted(g.choices(range(8), k=2))
    schema: dict[str, Any] = {"type": "string"}
    if g.random() < 0.5:
        schema["minLength"] = least
    if g.random() < 0.5:
        schema["maxLength"] = most
    return schema, lambda h: text(h, least, most)


def _pattern(g: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    pattern, made = g.choice(
        [
            ("^[a-c]{2,3}$", lambda h: "".join(h.choice("abc") for _ in range(h.randint(2, 3)))),
            ('"', lambda h: text(h) + '"' + text(h)),
            ("^\\\\", lambda h: "\\" + text(h)),
            ("(x|yy)$", lambda h: text(h) + h.choice(["x", "yy"])),
            ("^\\d+(\\.\\d\\d)?$", lambda h: h.choice(["12", "0.50", "7"])),
            ('^[^"]*é', lambda h: text(h).replace('"', "") + "é" + text(h)),
        ]
    )
    return {"type": "string", "pattern": pattern}, made


def _date(g: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    return {
        "type": "string",
        "format": "date",
    }, lambda h: f"{h.randint(1, 9999):04}-{h.randint(1, 12):02}-{h.randint(1, 28):02}"


def _bounds(g: random.Random, draw: Callable[[], Any]) -> tuple[dict[str, Any], Any, Any]:
    low, high = sorted((draw(), draw()))
    schema: dict[str, Any] = {}
    if g.random() < 0.6:
        schema["minimum"] = low
    if g.random() < 0.6:
        schema["maximum"] = high
    return schema, low, high


def _integer(g: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    size = 10 ** g.randint(0, 6)
    schema, low, high = _bounds(g, lambda: g.randint(-size, size))
    return {"type": "integer", **schema}, lambda h: h.randint(low, high)


def _number(g: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    digits = g.randint(0, 3)
    schema, low, high = _bounds(g, lambda: round(g.uniform(-200, 200), digits))
    return {"type": "number", **schema}, lambda h: min(max(round(h.uniform(low, high), 4), low), high)


def _constant(g: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    value = g.choice([None, True, 3, "a\nb", {"k": [1, "é"]}, []])
    return {"const": value}, lambda h: value


def _enum(g: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    values = g.sample(["red", "green", 'b"lue', 1, 2.5, None, False], 3)
    return {"enum": values}, lambda h: h.choice(values)


def _array(g: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    items, make = random_schema(g, depth - 1)
    least, most = sorted(g.choices(range(4), k=2))
    schema: dict[str, Any] = {"type": "array", "items": items}
    if g.random() < 0.5:
        schema["minItems"] = least
    if g.random() < 0.5:
        schema["maxItems"] = most
    return schema, lambda h: [make(h) for _ in range(h.randint(least, most))]


def _tuple(g: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    parts = [random_schema(g, depth - 1) for _ in range(g.randint(1, 3))]
    schema = {"type": "array", "prefixItems": [part for part, _ in parts], "minItems": g.randint(0, len(parts))}
    return schema, lambda h: [make(h) for _, make in parts][: h.randint(schema["minItems"], len(parts))]


def _object(g: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    names = g.sample(["a", "b", "long name", "ü", 'q"', "id"], g.randint(0, 4))
    parts = {name: random_schema(g, depth - 1) for name in names}
    needed = [name for name in names if g.random() < 0.5]
    schema = {"type": "object", "properties": {name: part for name, (part, _) in parts.items()}, "required": needed}
    if g.random() < 0.3:
        schema["additionalProperties"] = False
    return schema, lambda h: {n: make(h) for n, (_, make) in parts.items() if n in needed or h.random() < 0.5}


def _either(g: random.Random, depth: int) -> tuple[dict[str, Any], Make]:
    parts = [random_schema(g, depth - 1) for _ in range(2)]
    return {"anyOf": [part for part, _ in parts]}, lambda h: h.choice(parts)[1](h)
