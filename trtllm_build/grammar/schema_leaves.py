"""Strings and numbers of a JSON Schema as expressions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from nemo_diffgemma.errors import FieldError
from trtllm_build.grammar.automaton import Automaton
from trtllm_build.grammar.budget import Budget
from trtllm_build.grammar.determinise import automaton
from trtllm_build.grammar.expressions import Expression, Machine, Named, Repetition
from trtllm_build.grammar.json_formats import FORMATS
from trtllm_build.grammar.json_numbers import LARGEST_MULTIPLE, bounded, interval, multiples
from trtllm_build.grammar.json_text import EVERY_CHARACTER, any_number
from trtllm_build.grammar.notation import Notation
from trtllm_build.grammar.products import intersection
from trtllm_build.grammar.regex import regex
from trtllm_build.grammar.schema_keywords import Schema, below

# (keyword, value, allowed, fix) -> the error that names the keyword's place
Refuse = Callable[[str, object, str, str], FieldError]
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def string(schema: Schema, notation: Notation, field: str, path: str, budget: Budget, refuse: Refuse) -> Expression:
    """A string, bound by pattern, format and lengths in characters, all at once.

    Raises:
        FieldError: when no string fits, or for a pattern that is not regular.
    """
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    character = notation.character(EVERY_CHARACTER)
    bounds: list[Automaton] = []
    for key in ("pattern", "format"):
        if key not in schema:
            continue
        if key == "format":
            bounds.append(_of_format(schema["format"], notation))
            continue
        content = notation.inside(regex(schema["pattern"], f"{field} at {below(path, key)}", anywhere=True))
        bounds.append(automaton(Named(below(path, key), content), budget))
        if bounds[-1].empty:
            raise refuse(key, schema[key], "a pattern that some text matches", "correct it")
    if not bounds:
        if most is None:
            return notation.any_string(least)
        return notation.quoted(Repetition(character, least, most))
    if least or most is not None:
        bounds.append(automaton(Named(path, Repetition(character, least, most)), budget))
    found = bounds[0]
    for other in bounds[1:]:
        found = intersection(found, other, budget, path)
    if found.empty:
        key = "pattern" if "pattern" in schema else "format"
        raise refuse(key, schema[key], "pattern, format and lengths that some text fits", "correct one of them")
    return notation.quoted(Machine(found))


@cache
def _of_format(name: str, notation: Notation) -> Automaton:
    return automaton(notation.inside(regex(FORMATS[name], "format")), Budget("format", name, seconds=60))


def number(schema: Schema, whole: bool, path: str, budget: Budget, refuse: Refuse) -> Expression:
    """A number, bound from below and above, and by what it is a multiple of.

    Raises:
        FieldError: when no number fits.
    """
    divisor = schema.get("multipleOf")
    if divisor is not None and (divisor != int(divisor) or divisor > LARGEST_MULTIPLE):
        raise refuse("multipleOf", divisor, f"an integer from 1 to {LARGEST_MULTIPLE}", "leave it out")
    keys = [key for key in _BOUNDS if key in schema]
    if not keys and divisor in (None, 1):
        return any_number(whole or divisor is not None)
    whole = whole or divisor is not None
    within = interval(whole, *(schema.get(key) for key in _BOUNDS))
    found = any_number(whole).automaton if not keys or within.empty else bounded(whole, within, budget, path).automaton
    if divisor is not None:
        found = intersection(found, multiples(int(divisor)), budget, path)
    if found.empty or within.empty:
        key = keys[0] if keys else "multipleOf"
        bounds = ", ".join(f"{k} {schema[k]}" for k in (*keys, "multipleOf") if k in schema)
        allowed = f"bounds that some number of at most 18 digits before the point fits: not {bounds}"
        raise refuse(key, schema[key], allowed, "correct one of them")
    return Machine(found)
