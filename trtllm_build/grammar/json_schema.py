"""JSON Schema becomes an expression over text: what is written is valid, whatever the model says.

Objects have the keys of their schema in its order, optional ones may be left out, others are there only where
``additionalProperties`` says so. What a schema cannot guarantee is refused with its path, never dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from nemo_diffgemma.errors import FieldError
from trtllm_build.grammar.budget import Budget
from trtllm_build.grammar.determinise import automaton
from trtllm_build.grammar.expressions import Alternation, Expression, Loop, Named, Series, either, literal
from trtllm_build.grammar.json_containers import array
from trtllm_build.grammar.notation import JSON, Notation
from trtllm_build.grammar.schema_apart import apart
from trtllm_build.grammar.schema_keywords import TYPES, Schema, below, check, refusal, type_of, types_of
from trtllm_build.grammar.schema_leaves import number, string
from trtllm_build.grammar.schema_merge import Impossible, constraints, merge

LEVELS = 5  # how deep a reference may come back to itself; how deep free JSON goes
FREE_LEVELS = 2  # how deep free JSON goes inside a schema that says more
_MOST_NESTED = 60  # schemas in each other

Active = tuple[str, ...]  # the references that lead to a schema


def schema_expression(schema: Any, field: str, notation: Notation, budget: Budget) -> Expression:
    """The texts of a JSON Schema.

    Args:
        schema: as parsed from JSON.
        field: what an error names before the schema's path.
        notation: how its values are written.
        budget: what it may cost.

    Raises:
        FieldError: for what cannot be guaranteed, with its path (``$.properties.a.minimum``).
    """
    return Builder(schema, field, notation, budget).expression()


def json_object(spacing: str) -> Expression:
    """Any object, five deep."""
    return JSON[spacing].any_object(JSON[spacing].anything(LEVELS - 1))


class Builder:
    """Of one schema; the arguments are those of :func:`schema_expression`."""

    def __init__(self, schema: Any, field: str, notation: Notation, budget: Budget):
        self._root, self._field, self._budget = schema, field, budget
        self._notation, self._style = notation, notation.style
        self._count = 0

    def expression(self) -> Expression:
        """The texts of the whole schema.

        Raises:
            FieldError: for what cannot be guaranteed.
        """
        try:
            return self._node(self._root, "$", ("#",), 0)
        except Impossible as impossible:
            raise impossible.error from None

    def _refuse(self, path: str, value: Any, allowed: str, fix: str) -> FieldError:
        return refusal(self._field, path, value, allowed, fix)

    # -- references and combinations -------------------------------------------------------------------------------

    def _node(self, schema: Any, path: str, active: Active, level: int) -> Expression:
        """A schema inside of ``level`` arrays and objects."""
        self._count += 1
        self._budget.check_pieces(self._count, path)
        if level > _MOST_NESTED:
            raise self._refuse(path, schema, f"schemas at most {_MOST_NESTED} deep in each other", "make it flatter")
        flat, path, active = self._flat(schema, path, active)
        return Named(path, self._build(flat, path, active, level))

    def _flat(self, schema: Any, path: str, active: Active) -> tuple[dict[str, Any], str, Active]:
        """A schema without ``$ref``, ``allOf``, ``const`` and annotations; where it stands; how one got there."""
        self._budget.check_time(path)
        check(schema, self._field, path)
        if schema is False:
            raise Impossible(self._refuse(path, False, "a schema that some value fits", "leave it out"))
        if schema is True:
            return {}, path, active
        found = constraints(schema)
        reference, parts = found.pop("$ref", None), found.pop("allOf", [])
        if reference is not None:
            target, place = self._target(reference, below(path, "$ref"))
            flat, place, active = self._flat(target, place, self._follow(active, reference, path))
            # alone it stands for its target, whose place is the one to name
            found, path = (merge(flat, found, self._field, path), path) if found or parts else (flat, place)
        beside = active
        for i, part in enumerate(parts):
            flat, _, led = self._flat(part, below(path, "allOf", i), beside)
            found = merge(found, flat, self._field, path)
            # what two parts refer to does not come back to itself; what led here does
            active += tuple(r for r in led[len(beside) :] if r in beside or r not in active)
        return found, path, active

    def _follow(self, active: Active, reference: str, path: str) -> Active:
        active = (*active, reference)
        again = len(active) - len(set(active))
        if again >= LEVELS:
            allowed = f"a schema that can end: it comes back to itself {LEVELS} times at most"
            raise Impossible(self._refuse(below(path, "$ref"), reference, allowed, "make what comes back optional"))
        return active

    def _target(self, reference: str, path: str) -> tuple[Any, str]:
        keys = reference[1:].split("/")[1:]
        target, place = self._root, "$"
        for key in (unquote(k).replace("~1", "/").replace("~0", "~") for k in keys):
            inside = (
                target[int(key)] if isinstance(target, list) and key.isdecimal() and int(key) < len(target) else None
            )
            found = target[key] if isinstance(target, Mapping) and key in target else inside
            if found is None:
                raise self._refuse(path, reference, "a place that this schema has", "correct it")
            place = below(place, int(key) if isinstance(target, list) else key)
            target = found
        if reference[1:2] not in ("", "/"):
            raise self._refuse(path, reference, "a path (#/$defs/...): anchors are not followed", "write the path")
        return target, place

    def _build(self, flat: dict[str, Any], path: str, active: Active, level: int) -> Expression:
        if "enum" in flat:
            return self._enumerated(flat, path, active, level)
        for key in ("anyOf", "oneOf"):
            if key in flat:
                return self._branches(flat, key, path, active, level)
        types = types_of(flat)
        if not types:
            return self._notation.anything(self._free(level))
        if len(types) == 1:
            return self._typed(types[0], flat, path, active, level)
        return self._some([lambda kind=kind: self._typed(kind, flat, path, active, level) for kind in types])

    def _some(self, makers: list[Any]) -> Expression:
        """Those branches that some value fits."""
        parts: list[Expression] = []
        last: Impossible | None = None
        for make in makers:
            try:
                parts.append(make())
            except Impossible as impossible:
                last = impossible
        if not parts and last is not None:
            raise last
        return parts[0] if len(parts) == 1 else Alternation(tuple(parts))

    def _branches(self, flat: dict[str, Any], key: str, path: str, active: Active, level: int) -> Expression:
        rest = {k: v for k, v in flat.items() if k != key}
        if key == "oneOf":
            self._check_apart(flat["oneOf"], rest, path, active)

        def branch(i: int) -> Expression:
            found, place, followed = self._flat(flat[key][i], below(path, key, i), active)
            if rest:
                found = merge(rest, found, self._field, place)
            return Named(place, self._build(found, place, followed, level))

        return self._some([lambda i=i: branch(i) for i in range(len(flat[key]))])

    def _check_apart(self, branches: list[Any], rest: dict[str, Any], path: str, active: Active) -> None:
        def resolve(schema: Any) -> Schema | None:
            try:
                return self._flat(schema, path, active)[0]
            except Impossible:
                return None

        found = [resolve({"allOf": [rest, branch]}) for branch in branches]
        for i, a in enumerate(found):
            for j, b in enumerate(found):
                if i != j and a is not None and b is not None and not apart(a, b, resolve):
                    raise self._refuse(
                        below(path, "oneOf"),
                        branches[i],
                        f"branches that no value can share: [{i}] and [{j}] may, as far as is known",
                        "write anyOf, or give them different types, a required property with different const, "
                        "or additionalProperties: false",
                    )

    def _enumerated(self, flat: dict[str, Any], path: str, active: Active, level: int) -> Expression:
        """The values that the rest of the schema allows."""
        rest = {key: value for key, value in flat.items() if key != "enum"}
        values = flat["enum"]
        if "type" in rest:
            types = set(types_of({"type": rest["type"]}))
            values = [v for v in values if type_of(v) in types or (type_of(v) == "integer" and "number" in types)]
            rest.pop("type") if rest.keys() == {"type"} else None
        if rest and values:
            # as JSON, whatever the notation: its texts are known
            judge = Builder(self._root, self._field, JSON["spaced"], self._budget)
            allowed = automaton(judge._build(rest, path, active, level), self._budget)
            values = [value for value in values if allowed.accepts(json.dumps(value, ensure_ascii=False).encode())]
        if not values:
            place = below(path, "enum")
            raise Impossible(self._refuse(place, flat["enum"], "values that the rest of it allows", "correct one"))
        return Alternation(tuple(self._notation.known(v, f"{self._field} at {path}") for v in values))

    # -- types -----------------------------------------------------------------------------------------------------

    def _typed(self, kind: str, flat: Schema, path: str, active: Active, level: int) -> Expression:
        def refuse(key: str, value: object, allowed: str, fix: str) -> FieldError:
            return self._refuse(below(path, key), value, allowed, fix)

        match kind:
            case "string":
                return string(flat, self._notation, self._field, path, self._budget, refuse)
            case "integer" | "number":
                return number(flat, kind == "integer", path, self._budget, refuse)
            case "boolean":
                return either(literal("true"), literal("false"))
            case "null":
                return literal("null")
            case "array":
                return self._array(flat, path, active, level)
            case "object":
                return self._object(flat, path, active, level)
        raise AssertionError(f"{kind} is none of {TYPES}")  # pragma: no cover

    def _array(self, flat: Schema, path: str, active: Active, level: int) -> Expression:
        least, most = flat.get("minItems", 0), flat.get("maxItems")
        if not {"items", "prefixItems", "minItems", "maxItems"} & flat.keys():
            return self._notation.any_array(self._notation.anything(self._free(level) - 1))
        if most is not None and least > most:
            allowed = f"at most maxItems, {most}"
            raise self._refuse(below(path, "minItems"), least, allowed, "correct one of the two")
        first: list[Expression] = []
        more: Expression | None = None
        allowed = f"at most {len(flat.get('prefixItems', ()))}, the items of prefixItems: items allows no more"
        missing = Impossible(self._refuse(below(path, "minItems"), least, allowed, "add items, or lower it"))
        try:
            for i, item in enumerate(flat.get("prefixItems", ())[:most]):
                first.append(self._node(item, below(path, "prefixItems", i), active, level + 1))
            # items behind some that are named: none, unless the schema says which
            if ("items" in flat or "prefixItems" not in flat) and (most is None or most > len(first)):
                more = self._node(flat.get("items", True), below(path, "items"), active, level + 1)
        except Impossible as impossible:
            missing = impossible
        if more is None and least > len(first):
            raise missing
        return array(first, more, least, most, self._style)

    def _object(self, flat: Schema, path: str, active: Active, level: int) -> Expression:
        properties, needed = flat.get("properties", {}), flat.get("required", [])
        extra = flat.get("additionalProperties", "properties" not in flat)
        for i, key in enumerate(needed):
            if key not in properties and extra is not True and not isinstance(extra, Mapping):
                allowed = f"a name among properties: {', '.join(properties) or 'there are none'}"
                raise self._refuse(below(path, "required", i), key, allowed, "add the property")
        style = self._style
        items: list[tuple[Expression, bool]] = []
        for key in self._notation.ordered(dict.fromkeys((*properties, *needed))):
            where = below(path, "properties", key) if key in properties else below(path, "additionalProperties")
            try:
                value = self._node(properties.get(key, extra), where, active, level + 1)
            except Impossible:
                if key in needed:
                    raise
                continue
            items.append((style.pair(self._notation.key(key, f"{self._field} at {where}"), value), key in needed))
        if extra is not False:
            names = tuple(dict.fromkeys((*properties, *needed)))
            try:
                value = self._extra(extra, below(path, "additionalProperties"), active, level)
                pair = style.pair(self._notation.other_keys(names, self._budget, path), value)
                items.append((Loop(pair, style.comma), False))
            except Impossible:
                pass
        return style.wrapped("{}", Series(tuple(items), style.comma))

    def _extra(self, extra: Any, path: str, active: Active, level: int) -> Expression:
        if extra is True:
            return self._notation.anything(self._free(level) - 1)
        return self._node(extra, path, active, level + 1)

    def _free(self, level: int) -> int:
        """How deep JSON goes that a schema says nothing about."""
        return FREE_LEVELS if level else LEVELS
