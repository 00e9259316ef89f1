"""Tool calls as Gemma 4 writes them: ``<|tool_call>call:NAME{key:<|"|>text<|"|>,n:1}<tool_call|>``, one after another.

Keys are bare and sorted without regard to case, as the released chat template does (Jinja's ``dictsort``); strings
stand between quote tokens and have no escapes; there is no whitespace.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_diffgemma.errors import FieldError, require
from trtllm_build.grammar.budget import Budget
from trtllm_build.grammar.code_points import complement, without
from trtllm_build.grammar.determinise import automaton
from trtllm_build.grammar.expressions import (
    Alternation,
    CodePoints,
    Expression,
    Machine,
    Ranges,
    Repetition,
    Token,
    literal,
    optional,
    sequence,
)
from trtllm_build.grammar.json_schema import schema_expression
from trtllm_build.grammar.json_text import EVERY_CHARACTER, SPACINGS, scalar
from trtllm_build.grammar.notation import Notation
from trtllm_build.grammar.products import difference
from trtllm_build.grammar.regex import regex
from trtllm_build.grammar.schema_keywords import below

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # as OpenAI's, and dots
_CHOICES = ("auto", "required", "none")
_CONTROL: Ranges = ((0, 8), (11, 12), (14, 31))  # no text of use has them
_TEXT = complement(_CONTROL)


@dataclass(frozen=True)
class ToolTokens:
    """Ids of the tokens that tool calls are written with.

    Args:
        call: begins a call (``<|tool_call>``).
        call_end: ends it (``<tool_call|>``).
        quote: stands before and behind a string (``<|"|>``).
    """

    call: int
    call_end: int
    quote: int


@dataclass(frozen=True)
class CallNotation(Notation):
    """How arguments are written inside of a call.

    Args:
        quote: the quote token.
    """

    quote: int
    style = SPACINGS["compact"]

    def character(self, ranges: Ranges) -> Expression:
        return CodePoints(without(ranges, _CONTROL))

    def quoted(self, content: Expression) -> Expression:
        return sequence(Token(self.quote), content, Token(self.quote))

    def any_string(self, least: int) -> Expression:
        return self.quoted(Repetition(CodePoints(_TEXT), least))

    def scalar(self, value: Any, field: str) -> Expression:
        if not isinstance(value, str):
            return scalar(value, field)
        scalar(value, field)  # refuses what no text can say
        return self.quoted(literal(value))

    def key(self, name: str, field: str) -> Expression:
        if not _NAME.fullmatch(name):
            allowed = "a name of 1 to 64 letters, digits, _, . and -: calls have their keys without quotes"
            raise FieldError(field=field, value=name, allowed=allowed, fix="rename it")
        return literal(name)

    def other_keys(self, names: Sequence[str], budget: Budget, place: str) -> Expression:
        every = automaton(regex(_NAME.pattern.replace("{1,64}", "+"), "grammar.tools"), budget)
        if not names:
            return Machine(every)
        taken = automaton(Alternation(tuple(map(literal, names))), budget)
        return Machine(difference(every, taken, budget, place))

    def ordered(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=str.lower)


def tools_expression(
    value: Any, tokens: ToolTokens, field: str, budget: Budget, form: Callable[[Any, str], Expression]
) -> Expression:
    """An answer that may call tools, or must.

    Args:
        value: ``functions``: an array of ``{"name": str, "parameters": schema}``; ``choice``: ``auto`` (text, then any
            number of calls; the default), ``required`` (one call at least, and no text), ``none`` (text), or a
            function's name (that one at least once); ``parallel``: whether several calls may follow each other (the
            default); ``text``: a grammar of what is written where nothing is called, instead of any text.
        tokens: what calls are written with.
        field: what an error names (``grammar.tools``).
        budget: what it may cost.
        form: makes the expression of ``text``, and takes what an error names.

    Raises:
        FieldError: for what is none of these, or parameters that cannot be guaranteed, with their path.
    """
    keys = ("functions", "choice", "parallel", "text")
    require(isinstance(value, Mapping), field=field, value=value, allowed="an object", fix='pass {"functions": [...]}')
    for key in value:
        require(key in keys, field=f"{field}.{key}", value=value[key], allowed=", ".join(keys), fix="leave it out")
    functions = _functions(value.get("functions"), f"{field}.functions")
    choice, parallel = value.get("choice", "auto"), value.get("parallel", True)
    require(isinstance(parallel, bool), f"{field}.parallel", parallel, "true or false", "leave it out")
    allowed = ", ".join((*_CHOICES, *functions))
    named = isinstance(choice, str) and choice in functions
    require(named or choice in _CHOICES, f"{field}.choice", choice, allowed, "leave it out")
    text = form(value["text"], f"{field}.text") if "text" in value else None
    any_text = Repetition(CodePoints(EVERY_CHARACTER))
    if choice == "none":
        return any_text if text is None else text
    calls = [
        _call(name, parameters, tokens, f"{field}.functions[{i}].parameters", budget)
        for i, (name, parameters) in enumerate(functions.items())
        if choice in ("auto", "required", name)
    ]
    one = sequence(Token(tokens.call), Alternation(tuple(calls)), Token(tokens.call_end))
    some = Repetition(one, 1) if parallel else one
    if choice != "auto":
        return some
    return sequence(any_text, optional(some)) if text is None else Alternation((text, some))


def _functions(value: Any, field: str) -> dict[str, Any]:
    """Parameters by the functions' names."""
    good = isinstance(value, list) and bool(value)
    require(good, field=field, value=value, allowed="an array of at least one function", fix="declare one")
    found: dict[str, Any] = {}
    for i, function in enumerate(value):
        place = below(field, i)
        good = isinstance(function, Mapping) and function.keys() <= {"name", "parameters", "description", "strict"}
        require(good, place, function, "an object of name, description, parameters and strict", "correct it")
        name = function.get("name")
        good = isinstance(name, str) and bool(_NAME.fullmatch(name)) and name not in (*_CHOICES, *found)
        allowed = (
            f"a name of 1 to 64 letters, digits, _, . and -, that no other function has; not {', '.join(_CHOICES)}"
        )
        require(good, f"{place}.name", name, allowed, "rename it")
        found[name] = function.get("parameters", {"type": "object", "properties": {}})
        good = isinstance(found[name], Mapping) and found[name].get("type") == "object"
        require(good, f"{place}.parameters", found[name], 'a schema with "type": "object"', "correct it")
    return found


def _call(name: str, parameters: Any, tokens: ToolTokens, field: str, budget: Budget) -> Expression:
    return sequence(literal(f"call:{name}"), schema_expression(parameters, field, CallNotation(tokens.quote), budget))


def read_calls(ids: Sequence[int], texts: Sequence[bytes | None], tokens: ToolTokens) -> list[tuple[str, Any]]:
    """Names and arguments of the calls in an answer that a tools' grammar allowed.

    Args:
        ids: the answer's tokens; what stands before the first call is passed over.
        texts: of the vocabulary.
        tokens: what calls are written with.

    Raises:
        ValueError: for calls that no grammar allows, or that are cut off.
    """
    found, at = [], 0
    ids = list(ids)
    while tokens.call in ids[at:]:
        begin = ids.index(tokens.call, at) + 1
        at = ids.index(tokens.call_end, begin)
        # a call as JSON: strings from between the quotes, keys from where a key stands
        pieces, inner = [b""], False
        for token in ids[begin:at]:
            if token == tokens.quote:
                inner = not inner
                pieces.append(b"")
            else:
                pieces[-1] += texts[token] or b""
        plain = [piece.decode() for piece in pieces]
        plain[0] = plain[0].removeprefix("call:")
        name, brace, plain[0] = plain[0].partition("{")
        parts = [
            json.dumps(p) if i % 2 else _KEY.sub(r'"\1":', p) for i, p in enumerate([brace + plain[0], *plain[1:]])
        ]
        found.append((name, json.loads("".join(parts))))
    return found


_KEY = re.compile(r"(?<![A-Za-z0-9_.-])([A-Za-z0-9_.-]+):")
