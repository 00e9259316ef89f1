"""Tools: what a request declares, which of them it wants called, and calls that come back as history."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from triton_repo.gateway.fields import Object, Strict, Text, ignored, wrong
from triton_repo.gateway.form import Grammar

MOST_TOOLS = 128  # as OpenAI's
_KEPT = "arguments keep to parameters, whatever strict is"
_NOT_READ = "of a call only its function is read"
UNASKED = "no call before it has this id"
Call = dict[str, Any]


class Function(Strict):
    """A function that the model may call."""

    name: Text
    description: Text | None = None
    parameters: Object | None = Field(default=None, description="JSON Schema of its arguments")
    strict: bool | None = Field(default=None, description=_KEPT)

    def plain(self) -> dict[str, Any]:
        """As the served model takes it."""
        given = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {name: value for name, value in given.items() if value is not None}


class ChatTool(Strict):
    """A tool of a chat."""

    type: Literal["function"]
    function: Function


class FlatTool(Function):
    """A tool of a request for a response."""

    type: Literal["function"]


class FunctionName(Strict):
    """The one function that is to be called."""

    name: Text


class ChatNamed(Strict):
    """``tool_choice`` of a chat that names a function."""

    type: Literal["function"]
    function: FunctionName


class FlatNamed(FunctionName):
    """``tool_choice`` of a request for a response that names a function."""

    type: Literal["function"]


def _word_or_object(value: Any) -> str:
    return "~object" if isinstance(value, dict | BaseModel) else "~word"


_Word = Annotated[Literal["none", "auto", "required"] | None, Tag("~word")]
ChatChoice = Annotated[_Word | Annotated[ChatNamed, Tag("~object")], Discriminator(_word_or_object)]
FlatChoice = Annotated[_Word | Annotated[FlatNamed, Tag("~object")], Discriminator(_word_or_object)]


def tools_grammar(
    functions: Sequence[Function], choice: str | FunctionName | None, parallel: bool | None, form: Grammar | None
) -> Grammar | None:
    """What the served model takes for tools; None where a request has none.

    Args:
        functions: that are declared.
        choice: ``none``, ``auto`` (the default), ``required``, or the one that is to be called.
        parallel: whether one answer may call several times, which it may where this is None.
        form: of an answer that calls nothing; None for any text.

    Raises:
        PydanticCustomError: for a choice that the declared functions do not have.
    """
    names = [function.name for function in functions]
    named = choice.name if isinstance(choice, FunctionName) else None
    if named is not None and named not in names:
        raise wrong("tool_choice", f"none of tools is called so; there is {', '.join(names) or 'none'}")
    if choice == "required" and not names:
        raise wrong("tool_choice", "required needs tools")
    if not names:
        return None
    twice = next((i for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise wrong(f"tools[{twice}]", "another tool has this name")
    found: Grammar = {
        "functions": [function.plain() for function in functions],
        "choice": named or choice or "auto",
        "parallel": parallel is not False,
    }
    return {"tools": found if form is None else {**found, "text": form}}


Arguments = Annotated[Text, AfterValidator(lambda text: _object(text)), Field(description="JSON of an object")]


class CalledFunction(Strict):
    """A function and the arguments of a call of it."""

    name: Text
    arguments: Arguments


class ToolCall(Strict):
    """A call in a message of an assistant."""

    id: Text
    type: Literal["function"] | None = None
    function: CalledFunction
    index: Any = ignored(why=_NOT_READ)
    extra_content: Any = ignored(why=_NOT_READ)

    def plain(self) -> Call:
        """As chat templates take it."""
        return call(self.id, self.function.name, self.function.arguments)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _object(arguments: str) -> str:
    try:
        found = json.loads(arguments or "{}", parse_constant=_no_number)
        json.dumps(found, ensure_ascii=False).encode()  # escapes can spell half of a surrogate pair
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise PydanticCustomError("object", "not the JSON of an object")
    return arguments


def call(call_id: str, name: str, arguments: str) -> Call:
    """A call as chat templates take it."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.loads(arguments or "{}")}}


def unasked(messages: Sequence[dict[str, Any]]) -> int | None:
    """Name each result's function, in place; the number of the first result that no call before it asked for.

    Args:
        messages: as the served model takes them.
    """
    called: dict[str, str] = {}
    for i, message in enumerate(messages):
        for one in message.get("tool_calls", ()):
            called[one["id"]] = one["function"]["name"]
        if message["role"] == "tool":
            if message["tool_call_id"] not in called:
                return i
            message["name"] = called[message["tool_call_id"]]
    return None


@dataclass(frozen=True)
class MadeCall:
    """A call that the model makes.

    Args:
        id: that its result comes back with.
        name: of the function.
        arguments: JSON of an object.
    """

    id: str
    name: str
    arguments: str


def made_calls(sent: Sequence[str]) -> list[MadeCall]:
    """The calls of a response of the served model, each with an id of its own."""
    found = [json.loads(text) for text in sent]
    return [
        MadeCall(f"call_{uuid.uuid4().hex}", one["name"], json.dumps(one["arguments"], ensure_ascii=False))
        for one in found
    ]
