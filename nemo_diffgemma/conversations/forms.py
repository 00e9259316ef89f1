"""The forms that records of conversations have, each made one list of messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nemo_diffgemma.chat import Message
from nemo_diffgemma.conversations.calls import call_of, calls_of, tools_of
from nemo_diffgemma.conversations.record import ONE_A_LINE, Record, is_absent
from nemo_diffgemma.conversations.texts import needed_text, text_of
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
_BOTH = ("conversations", "conversation")


def recognise(record: Record, where: str) -> str:
    """The form of a record, by the fields that it has.

    Raises:
        FieldError: when it is none of :data:`FORMS`.
    """
    given = {name for name, value in record.items() if value is not None}
    for key in _BOTH:
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
    what else of it a chat template may know. A ``system`` beside the messages becomes the first of them. Other fields,
    of the record and of its messages, are left out.

    Args:
        record: as it was read.
        form: one of :data:`FORMS`.
        where: how errors name the record.

    Raises:
        FieldError: naming the field, when it is not such a conversation.
    """
    messages, name = FORMS[form](record, where)
    if not is_absent(record.get("system")):
        system = {"role": "system", "content": text_of(f"{where}: system", record["system"])}
        other = messages[0]["role"] == "system" and messages[0]["content"] != system["content"]
        allowed = "none beside another system message at the start"
        require(
            not other, field=f"{where}: system", value=record["system"], allowed=allowed, fix="leave one of them out"
        )
        if messages[0]["role"] != "system":
            messages.insert(0, system)
    last, fix = messages[-1], "end with the answer to learn"
    field = f"{where}: {name} of the last message"
    require(last["role"] == "assistant", field=field, value=last["role"], allowed="assistant", fix=fix)
    calls, field = last.get("tool_calls"), f"{where}: tool_calls of the last message"
    require(not calls, field=field, value=calls, allowed="none: a text is learnt", fix=fix)
    roles, allowed = [m["role"] for m in messages], "a user's message before the answer"
    require("user" in roles, field=f"{where}: {name}", value=roles, allowed=allowed, fix="add it")
    return messages, tools_of(f"{where}: tools", record.get("tools"))


# -- forms: messages, and how the form calls a role ------------------------------------------------------------------


def _from_messages(record: Record, where: str) -> tuple[list[Message], str]:
    key = next((k for k in ("messages", *_BOTH) if record.get(k) is not None), "messages")
    old, allowed = record.get("functions"), "tools in its place"
    fix = 'write "tools": [{"type": "function", "function": {...}}]'
    require(is_absent(old), field=f"{where}: functions", value=old, allowed=allowed, fix=fix)
    messages = _each(record, where, key, _message)
    _check_weight(record[key], where)
    return messages, "role"


def _from_sharegpt(record: Record, where: str) -> tuple[list[Message], str]:
    key = next((k for k in _BOTH if record.get(k) is not None), "conversations")

    def message(field: str, value: Record) -> Message:
        role = value.get("from")
        known = isinstance(role, str) and role in _FROM
        require(known, field=f"{field}.from", value=role, allowed=", ".join(_FROM), fix="correct the role")
        if role == "function_call":
            return {"role": "assistant", "content": "", "tool_calls": [call_of(f"{field}.value", value.get("value"))]}
        return _plain(_FROM[str(role)], f"{field}.value", value.get("value"))

    messages = _each(record, where, key, message)
    _check_weight(record[key], where)
    return messages, "from"


def _from_prompt_completion(record: Record, where: str) -> tuple[list[Message], str]:
    messages: list[Message] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(record.get(key), list):
            messages += _each(record, where, key, _message)
        else:
            messages.append(_plain(role, f"{where}: {key}", record.get(key)))
    if isinstance(record.get("completion"), list):
        _check_weight(record["completion"], where)
    return messages, "role"


def _from_alpaca(record: Record, where: str) -> tuple[list[Message], str]:
    messages: list[Message] = []
    history, allowed, fix = record.get("history"), "a question and its answer", "write [QUESTION, ANSWER]"
    history = [] if is_absent(history) else history
    good = isinstance(history, list)
    require(good, field=f"{where}: history", value=history, allowed=f"a list, each {allowed}", fix=fix)
    assert isinstance(history, list)
    for index, pair in enumerate(history):
        field = f"{where}: history[{index}]"
        good = isinstance(pair, list) and len(pair) == 2
        require(good, field=field, value=pair, allowed=allowed, fix=fix)
        messages += [_plain("user", f"{field}[0]", pair[0]), _plain("assistant", f"{field}[1]", pair[1])]
    instruction = _plain("user", f"{where}: instruction", record.get("instruction"))
    if not is_absent(record.get("input")):
        instruction["content"] += "\n\n" + text_of(f"{where}: input", record["input"])
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
# All that is read of a record of a form, but for what only says which form it is.
USED: Mapping[str, frozenset[str]] = {
    "messages": frozenset(("messages", *_BOTH, "system", "tools", "functions")),
    "sharegpt": frozenset((*_BOTH, "system", "tools")),
    "prompt_completion": frozenset(("prompt", "completion", "system", "tools")),
    "alpaca": frozenset(("instruction", "input", "output", "history", "system", "tools")),
}
TELLING = frozenset(name for fields in _FIELDS.values() for names in fields for name in names)
"""Fields by which forms are recognised."""


# -- messages --------------------------------------------------------------------------------------------------------


def _each(record: Record, where: str, key: str, make: Callable[[str, Record], Message]) -> list[Message]:
    values, fix = record.get(key), f"write {ONE_A_LINE}"
    good = isinstance(values, list) and bool(values)
    require(good, field=f"{where}: {key}", value=values, allowed="a list of messages", fix=fix)
    assert isinstance(values, list)
    messages = []
    for index, value in enumerate(values):
        field, allowed = f"{where}: {key}[{index}]", "an object with role and content"
        require(isinstance(value, dict), field=field, value=value, allowed=allowed, fix=fix)
        messages.append(make(field, value))
    return messages


def _check_weight(values: list[Record], where: str) -> None:
    """OpenAI's files say with a weight of 0 that an answer is not to be learnt."""
    weight, field = values[-1].get("weight"), f"{where}: weight of the last message"
    require(weight in (None, 1), field=field, value=weight, allowed="1: it is learnt", fix="drop the line")


def _message(field: str, value: Record) -> Message:
    role = value.get("role")
    require(role in ROLES, field=f"{field}.role", value=role, allowed=", ".join(ROLES), fix="correct the role")
    old, allowed = value.get("function_call"), "tool_calls in its place"
    fix = 'write "tool_calls": [{"type": "function", "function": {...}}]'
    require(is_absent(old), field=f"{field}.function_call", value=old, allowed=allowed, fix=fix)
    calls = calls_of(f"{field}.tool_calls", role, value.get("tool_calls"))
    if not calls:
        message = _plain("system" if role == "developer" else str(role), f"{field}.content", value.get("content"))
    else:
        content = value.get("content")
        said = "" if content is None else text_of(f"{field}.content", content)
        message = {"role": role, "content": said, "tool_calls": calls}
    more = {name: value[name] for name in _MORE if value.get(name) is not None}
    return message | {name: text_of(f"{field}.{name}", text) for name, text in more.items()}


def _plain(role: str, field: str, content: Any) -> Message:
    # an empty system message says nothing, and a tool may have nothing to say
    read = needed_text if role in ("user", "assistant") else text_of
    return {"role": role, "content": read(field, content)}


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(names)
