"""The forms that records of conversations have, each made one list of messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from nemo_diffgemma.chat import Message
from nemo_diffgemma.conversations.records import ONE_A_LINE, Record
from nemo_diffgemma.errors import FieldError, require

ROLES = ("system", "developer", "user", "assistant", "tool")
# Fields of a message that a chat template may know, beside role and content.
_MORE = ("name", "tool_call_id", "reasoning_content", "reasoning")
# Names that ShareGPT's files give the roles.
_FROM = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


def recognise(record: Record, where: str) -> str:
    """The form of a record, by the fields that it has.

    Raises:
        FieldError: when it is none of :data:`FORMS`.
    """
    given = {name for name, value in record.items() if value is not None}
    for key in ("conversations", "conversation"):
        first = record[key][0] if key in given and isinstance(record[key], list) and record[key] else None
        if isinstance(first, dict) and "from" in first and "messages" not in given:
            return "sharegpt"
    for form, fields in _FIELDS.items():
        if any(given.issuperset(names) for names in fields):
            return form
    allowed = "; ".join(f"{form}: {' or '.join(map(_listed, fields))}" for form, fields in _FIELDS.items())
    raise FieldError(
        field=where, value=sorted(given), allowed=f"fields of one form ({allowed})", fix=f"write {ONE_A_LINE}"
    )


def convert(record: Record, form: str, where: str) -> tuple[list[Message], list[Record]]:
    """The messages of a record, the last of them the assistant's answer, and the declarations of its tools.

    A message has ``role`` (``developer`` becomes ``system``), ``content`` (a text; of parts, all of them together) and
    what else of it a chat template may know. Other fields, of the record and of its messages, are left out.

    Args:
        record: as it was read.
        form: one of :data:`FORMS`.
        where: how errors name the record.

    Raises:
        FieldError: naming the field, when it is not such a conversation.
    """
    messages, name = FORMS[form](record, where)
    system = record.get("system")
    if form in ("sharegpt", "alpaca") and system:
        messages.insert(0, {"role": "system", "content": _text(f"{where}: system", system)})
    last = messages[-1]
    fix = "end with the answer to learn"
    require(
        last["role"] == "assistant",
        field=f"{where}: {name} of the last message",
        value=last["role"],
        allowed="assistant",
        fix=fix,
    )
    calls = last.get("tool_calls")
    require(
        not calls,
        field=f"{where}: tool_calls of the last message",
        value=calls,
        allowed="none: a text is learnt",
        fix=fix,
    )
    asked = any(message["role"] == "user" for message in messages)
    require(
        asked,
        field=f"{where}: {name}",
        value=[m["role"] for m in messages],
        allowed="a user's message before the answer",
        fix="add it",
    )
    return messages, _tools(record, where)


# -- forms: messages, and how the form calls a role ------------------------------------------------------------------


def _from_messages(record: Record, where: str) -> tuple[list[Message], str]:
    key = next((k for k in ("messages", "conversations", "conversation") if record.get(k) is not None), "messages")
    return _each(record, where, key, _message), "role"


def _from_sharegpt(record: Record, where: str) -> tuple[list[Message], str]:
    key = next((k for k in ("conversations", "conversation") if record.get(k) is not None), "conversations")

    def message(field: str, value: Record) -> Message:
        role = value.get("from")
        require(role in _FROM, field=f"{field}.from", value=role, allowed=", ".join(_FROM), fix="correct the role")
        if role == "function_call":
            return {"role": "assistant", "content": "", "tool_calls": [_call(f"{field}.value", value.get("value"))]}
        return _plain(_FROM[str(role)], f"{field}.value", value.get("value"))

    return _each(record, where, key, message), "from"


def _from_prompt_completion(record: Record, where: str) -> tuple[list[Message], str]:
    messages: list[Message] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(record.get(key), list):
            messages += _each(record, where, key, _message)
        else:
            messages.append(_plain(role, f"{where}: {key}", record.get(key)))
    return messages, "role"


def _from_alpaca(record: Record, where: str) -> tuple[list[Message], str]:
    messages: list[Message] = []
    for index, pair in enumerate(record.get("history") or ()):
        field = f"{where}: history[{index}]"
        good = isinstance(pair, list) and len(pair) == 2
        require(good, field=field, value=pair, allowed="a question and its answer", fix="write [QUESTION, ANSWER]")
        messages += [_plain("user", f"{field}[0]", pair[0]), _plain("assistant", f"{field}[1]", pair[1])]
    instruction = _plain("user", f"{where}: instruction", record.get("instruction"))
    if record.get("input"):
        instruction["content"] += "\n\n" + _text(f"{where}: input", record["input"])
    return [*messages, instruction, _plain("assistant", f"{where}: output", record.get("output"))], "role"


FORMS: Mapping[str, Callable[[Record, str], tuple[list[Message], str]]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "prompt_completion": _from_prompt_completion,
    "alpaca": _from_alpaca,
}
# By which fields a form is recognised.
_FIELDS = {
    "messages": (("messages",), ("conversations",), ("conversation",)),
    "sharegpt": (("conversations",),),
    "prompt_completion": (("prompt", "completion"),),
    "alpaca": (("instruction", "output"),),
}


# -- messages --------------------------------------------------------------------------------------------------------


def _each(record: Record, where: str, key: str, make: Callable[[str, Record], Message]) -> list[Message]:
    values = record.get(key)
    good = isinstance(values, list) and bool(values)
    require(good, field=f"{where}: {key}", value=values, allowed="a list of messages", fix=f"write {ONE_A_LINE}")
    assert isinstance(values, list)
    messages = []
    for index, value in enumerate(values):
        field = f"{where}: {key}[{index}]"
        require(
            isinstance(value, dict),
            field=field,
            value=value,
            allowed="an object with role and content",
            fix=f"write {ONE_A_LINE}",
        )
        messages.append(make(field, value))
    return messages


def _message(field: str, value: Record) -> Message:
    role = value.get("role")
    require(role in ROLES, field=f"{field}.role", value=role, allowed=", ".join(ROLES), fix="correct the role")
    calls = value.get("tool_calls") or []
    if not calls:
        message = _plain("system" if role == "developer" else str(role), f"{field}.content", value.get("content"))
    else:
        good = role == "assistant" and isinstance(calls, list)
        require(
            good,
            field=f"{field}.tool_calls",
            value=calls,
            allowed="a list, in a message of the assistant",
            fix="leave it out",
        )
        content = value.get("content")
        message = {
            "role": role,
            "content": "" if content is None else _text(f"{field}.content", content),
            "tool_calls": [_tool_call(f"{field}.tool_calls[{i}]", call) for i, call in enumerate(calls)],
        }
    more = {name: value[name] for name in _MORE if value.get(name) is not None}
    return message | {name: _text(f"{field}.{name}", text) for name, text in more.items()}


def _plain(role: str, field: str, content: Any) -> Message:
    text = _text(field, content)
    # an empty system message says nothing, and a tool may have nothing to say
    needed = role in ("user", "assistant")
    require(
        not needed or (not text.isspace() and text != ""),
        field=field,
        value=content,
        allowed="text",
        fix="write it, or drop the line",
    )
    return {"role": role, "content": text}


def _text(field: str, value: Any) -> str:
    if isinstance(value, list):
        parts = []
        for index, part in enumerate(value):
            good = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            require(
                good,
                field=f"{field}[{index}]",
                value=part,
                allowed='{"type": "text", "text": "..."}',
                fix="leave the part out",
            )
            parts.append(part["text"])
        value = "".join(parts)
    require(isinstance(value, str), field=field, value=value, allowed="text", fix="write it, or drop the line")
    whole = value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    require(
        whole,
        field=field,
        value=value,
        allowed="text without half a surrogate pair (\\ud83d and the like)",
        fix="write the character",
    )
    return str(value)


def _tool_call(field: str, call: Any) -> Record:
    function = call.get("function") if isinstance(call, dict) else None
    require(
        isinstance(function, dict),
        field=field,
        value=call,
        allowed='{"type": "function", "function": {...}}',
        fix="correct the call",
    )
    more = {"id": _text(f"{field}.id", call["id"])} if call.get("id") is not None else {}
    return more | _call(f"{field}.function", function)


def _call(field: str, function: Any) -> Record:
    """A call of a function, whose arguments are an object: chat templates write them out."""
    if isinstance(function, str):
        function = _object(field, function)
    name = function.get("name") if isinstance(function, dict) else None
    good = isinstance(name, str) and name != ""
    require(good, field=field, value=function, allowed='{"name": "...", "arguments": {...}}', fix="correct the call")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _object(f"{field}.arguments", arguments) if arguments.strip() else {}
    arguments = {} if arguments is None else arguments
    require(
        isinstance(arguments, dict),
        field=f"{field}.arguments",
        value=arguments,
        allowed="an object, or its JSON",
        fix="correct them",
    )
    _text(field, json.dumps([name, arguments], ensure_ascii=False))
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _object(field: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FieldError(field=field, value=text, allowed="JSON", fix=f"correct it: {error}") from None


def _tools(record: Record, where: str) -> list[Record]:
    tools = record.get("tools")
    if not tools:
        return []
    tools = _object(f"{where}: tools", tools) if isinstance(tools, str) else tools
    require(isinstance(tools, list), field=f"{where}: tools", value=tools, allowed="a list", fix="correct it")
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        good = isinstance(function, dict) and isinstance(function.get("name"), str)
        allowed = '{"type": "function", "function": {"name": "...", ...}}'
        require(good, field=f"{where}: tools[{index}]", value=tool, allowed=allowed, fix="correct the declaration")
    _text(f"{where}: tools", json.dumps(tools, ensure_ascii=False))
    return list(tools)


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(names)
