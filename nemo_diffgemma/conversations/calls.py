"""Calls of functions and declarations of tools: what of a conversation is JSON in any depth."""

from __future__ import annotations

import json
from typing import Any

from nemo_diffgemma.conversations.record import Record, is_absent
from nemo_diffgemma.conversations.texts import text_of
from nemo_diffgemma.errors import FieldError, require

# Brackets in each other: declarations have a few, and what reads them (templates, JSON) takes some hundreds.
MOST_DEPTH = 100


def calls_of(field: str, role: Any, calls: Any) -> list[Record]:
    """The calls of an assistant's message, each with ``type`` and ``function``: ``name`` and ``arguments``, one object.

    Raises:
        FieldError: when they are no such calls, or no message of the assistant has them.
    """
    if is_absent(calls):
        return []
    good = role == "assistant" and isinstance(calls, list)
    require(good, field=field, value=calls, allowed="a list, in a message of the assistant", fix="leave it out")
    return [_tool_call(f"{field}[{i}]", call) for i, call in enumerate(calls)]


def call_of(field: str, function: Any) -> Record:
    """A call of a function, or its JSON; the call's arguments become an object: chat templates write them out.

    Raises:
        FieldError: when it is no such call.
    """
    if isinstance(function, str):
        function = _parsed(field, function)
    name = function.get("name") if isinstance(function, dict) else None
    good = isinstance(name, str) and name != ""
    require(good, field=field, value=function, allowed='{"name": "...", "arguments": {...}}', fix="correct the call")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _parsed(f"{field}.arguments", arguments) if arguments.strip() else {}
    arguments = {} if arguments is None else arguments
    allowed = "an object, or its JSON"
    require(isinstance(arguments, dict), field=f"{field}.arguments", value=arguments, allowed=allowed, fix="correct it")
    text_of(f"{field}.name", name)
    _check_json(f"{field}.arguments", arguments)
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def tools_of(field: str, tools: Any) -> list[Record]:
    """Declarations of functions, given as a list or its JSON.

    Raises:
        FieldError: when they are none.
    """
    if is_absent(tools):
        return []
    tools = _parsed(field, tools) if isinstance(tools, str) else tools
    require(isinstance(tools, list), field=field, value=tools, allowed="a list", fix="correct it")
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        good = isinstance(function, dict) and isinstance(function.get("name"), str)
        allowed = '{"type": "function", "function": {"name": "...", ...}}'
        require(good, field=f"{field}[{index}]", value=tool, allowed=allowed, fix="correct the declaration")
        _check_json(f"{field}[{index}]", tool)
    return list(tools)


def _tool_call(field: str, call: Any) -> Record:
    function = call.get("function") if isinstance(call, dict) else None
    allowed = '{"type": "function", "function": {...}}'
    require(isinstance(function, dict), field=field, value=call, allowed=allowed, fix="correct the call")
    more = {"id": text_of(f"{field}.id", call["id"])} if call.get("id") is not None else {}
    return more | call_of(f"{field}.function", function)


def _parsed(field: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        said = "brackets too deep in each other" if isinstance(error, RecursionError) else str(error)
        raise FieldError(field=field, value=text, allowed="JSON", fix=f"correct it: {said}") from None


def _check_json(field: str, value: Any) -> None:
    """Raise :class:`FieldError` for what JSON does not have (Parquet has dates, bytes, decimals), or too deep."""
    level, depth = [value], 0
    while level and depth <= MOST_DEPTH:
        depth += 1
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        level = below
    deep = f"at most {MOST_DEPTH} brackets in each other"
    require(
        depth <= MOST_DEPTH, field=field, value="brackets too deep in each other", allowed=deep, fix="leave them out"
    )
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        allowed = "what JSON has: texts, numbers, true, false, null, lists, objects"
        raise FieldError(field=field, value=value, allowed=allowed, fix=f"write a text in its place: {error}") from None
    text_of(field, written)
