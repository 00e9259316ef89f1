"""A request's grammar, compiled for a vocabulary; grammars that were asked for before are at hand."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from nemo_diffgemma.errors import FieldError, require
from trtllm_build.grammar.budget import Budget
from trtllm_build.grammar.determinise import automaton
from trtllm_build.grammar.expressions import Alternation, Expression, literal
from trtllm_build.grammar.json_schema import json_object, schema_expression
from trtllm_build.grammar.json_text import SPACINGS
from trtllm_build.grammar.kept import Kept
from trtllm_build.grammar.notation import JSON
from trtllm_build.grammar.regex import regex
from trtllm_build.grammar.token_automaton import TokenAutomaton
from trtllm_build.grammar.token_classes import token_automaton
from trtllm_build.grammar.tools import ToolTokens, tools_expression
from trtllm_build.grammar.vocabulary import Vocabulary

_KINDS = ("regex", "choice", "json_schema", "json_object", "tools")


def compile_grammar(
    grammar: Mapping[str, Any],
    vocabulary: Vocabulary,
    end_ids: Collection[int],
    tool_tokens: ToolTokens | None = None,
) -> TokenAutomaton:
    """The rows of tokens that a grammar allows.

    The vocabulary's trie is made before the clock starts, at the first grammar of all.

    Args:
        grammar: exactly one of ``{"regex": str}``, which the whole answer matches, ``{"choice": [str, ...]}``,
            ``{"json_schema": {...}}`` and ``{"json_object": True}``, any object five deep. Beside the last two
            ``whitespace``: ``spaced`` (``", "`` and ``": "``, as ``json.dumps`` does, the default), ``compact`` (none)
            or ``flexible`` (any). Or ``{"tools": {...}}``: :func:`trtllm_build.grammar.tools.tools_expression`.
        vocabulary: of the tokenizer.
        end_ids: the tokens that end an answer, one at least.
        tool_tokens: what the model writes calls with; None for a model that calls no tools.

    Raises:
        FieldError: for a grammar that is not one of these, cannot be guaranteed, allows nothing or is too large.
    """
    kind = _kind(grammar)
    ends = tuple(sorted(set(end_ids)))
    least = min(ends, default=-1)
    if least < 0 or ends[-1] >= len(vocabulary.texts):
        raise ValueError(f"end tokens {ends} are not of a vocabulary of {len(vocabulary.texts)}")
    try:
        # in the order that is written: a schema's keys stand in that order in the answer
        text = json.dumps(dict(grammar))
        plain = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise FieldError(
            field=f"grammar.{kind}", value=grammar[kind], allowed="a value of JSON", fix="write it as JSON"
        ) from error
    if kind == "tools":
        allowed = "no tools: this model's tokenizer has no tokens for calls"
        require(tool_tokens is not None, "grammar.tools", grammar[kind], allowed, "leave tools out")
    key = (vocabulary.key, ends, tool_tokens, text)
    if (found := _COMPILED.find(key)) is not None:
        return found
    made = _compiled(kind, plain, vocabulary, ends, tool_tokens)
    return _COMPILED.keep(key, made, made.bytes)


def _kind(grammar: Any) -> str:
    if not isinstance(grammar, Mapping):
        raise FieldError(field="grammar", value=grammar, allowed="an object", fix='pass {"json_schema": {...}}')
    kinds = [key for key in grammar if key in _KINDS]
    unknown = [key for key in grammar if key not in (*_KINDS, "whitespace")]
    require(
        not unknown,
        field=f"grammar.{unknown[0]}" if unknown else "grammar",
        value=grammar[unknown[0]] if unknown else None,
        allowed=f"of all keys {', '.join(_KINDS)} and whitespace",
        fix="leave it out",
    )
    require(
        len(kinds) == 1,
        field="grammar",
        value=dict(grammar),
        allowed=f"exactly one of {', '.join(_KINDS)}",
        fix="leave the others out" if kinds else 'pass {"json_schema": {...}}',
    )
    if "whitespace" in grammar:
        style = grammar["whitespace"]
        require(
            kinds[0] in ("json_schema", "json_object") and isinstance(style, str) and style in SPACINGS,
            field="grammar.whitespace",
            value=style,
            allowed=f"{', '.join(SPACINGS)}, beside json_schema or json_object",
            fix="leave it out",
        )
    return str(kinds[0])


def _compiled(
    kind: str,
    grammar: Mapping[str, Any],
    vocabulary: Vocabulary,
    end_ids: Collection[int],
    tool_tokens: ToolTokens | None = None,
) -> TokenAutomaton:
    field, value = f"grammar.{kind}", grammar[kind]
    _ = vocabulary.trie
    budget = Budget(field, value)
    try:
        if tool_tokens is not None and kind == "tools":
            expression = tools_expression(value, tool_tokens, field, budget, partial(_text, budget))
        else:
            expression = _expression(kind, value, field, grammar.get("whitespace", "spaced"), budget)
        texts = automaton(expression, budget)
    except RecursionError as error:
        raise budget.error("a grammar that is not nested so deep") from error
    require(
        not texts.empty, field=field, value=value, allowed="a grammar that some text fits", fix="correct the grammar"
    )
    return token_automaton(texts, vocabulary, end_ids, budget)


def _text(budget: Budget, grammar: Any, field: str) -> Expression:
    """Of an answer that calls no tool."""
    kind = _kind(grammar)
    require(kind != "tools", field=field, value=grammar, allowed="any other grammar", fix="leave tools out of it")
    return _expression(kind, grammar[kind], f"{field}.{kind}", grammar.get("whitespace", "spaced"), budget)


def _expression(kind: str, value: Any, field: str, spacing: str, budget: Budget) -> Expression:
    match kind:
        case "regex":
            good = isinstance(value, str)
            require(good, field=field, value=value, allowed="a regular expression", fix="pass a string")
            return regex(value, field)
        case "choice":
            return _choice(value, field)
        case "json_schema":
            return schema_expression(value, field, JSON[spacing], budget)
    require(value is True, field=field, value=value, allowed="true", fix="pass true, or leave grammar out")
    return json_object(spacing)


def _choice(value: Any, field: str) -> Expression:
    good = isinstance(value, list | tuple) and bool(value) and all(isinstance(x, str) and x for x in value)
    allowed = "an array of at least one string, none of them empty"
    require(good, field=field, value=value, allowed=allowed, fix='pass ["yes", "no"]')
    for i, text in enumerate(value):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            allowed = "text that UTF-8 can write: no lone surrogates"
            raise FieldError(field=f"{field}[{i}]", value=text, allowed=allowed, fix="correct the text") from error
    return Alternation(tuple(map(literal, value)))


_COMPILED = Kept[TokenAutomaton]()
