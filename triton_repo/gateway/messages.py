"""The messages of a conversation, as the clients of OpenAI's API send them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from triton_repo.gateway.fields import Strict, Text, ignored, only, wrong
from triton_repo.gateway.tools import MOST_TOOLS, ToolCall

# Marks, in the path of a validation error, which of several shapes a value was taken for.
SHAPE = "~"
OURS = "this server has nothing of the kind: leave it out"
TOOLS = "of an older API: use tools"
_CACHE = "prompts are cached by what they begin with"
_HISTORY = "of a message only role and content are read"


def text_or_list(value: Any) -> str:
    """The tag of a value that may be one text or a list."""
    if value is None:
        return "~null"
    return "~list" if isinstance(value, list) else "~text"


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text
    cache_control: Any = ignored(why=_CACHE)


class Message(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="developer is another name of system"
    )
    content: Annotated[
        Annotated[Text, Tag("~text")]
        | Annotated[list[TextPart], Field(fail_fast=True), Tag("~list")]
        | Annotated[None, Tag("~null")],
        Discriminator(text_or_list),
    ] = Field(default=None, description="a text, or texts that are joined; null or left out by an assistant: none")
    id: Any = ignored(why=_HISTORY)
    name: Any = ignored(why="who of several speaks goes into content")
    cache_control: Any = ignored(why=_CACHE)
    # in answers that come back as history
    refusal: Any = only(instead="put it into content")
    annotations: Any = ignored([], why=_HISTORY)
    reasoning: Any = ignored("", why="what was thought before an answer is no part of it")
    reasoning_content: Any = ignored("", why="what was thought before an answer is no part of it")
    audio: Any = only(instead="this model reads and writes text alone")
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=MOST_TOOLS)] | None = Field(
        default=None, description="what an assistant called"
    )
    tool_call_id: Text | None = Field(default=None, description="of the call that this is the result of")
    function_call: Any = only(instead=TOOLS)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise wrong("content", "a message of this role needs one")
        if self.tool_calls and self.role != "assistant":
            raise wrong("tool_calls", "only an assistant calls tools")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise wrong("tool_call_id", "the message of a tool, and no other, has one")
        return self

    def plain(self) -> dict[str, Any]:
        """As the served model takes it."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        found: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            found["tool_calls"] = [one.plain() for one in self.tool_calls]
        return found if self.tool_call_id is None else {**found, "tool_call_id": self.tool_call_id}


def require_one_name(messages: Sequence[Message]) -> None:
    """Raise a validation error when names tell several speakers of a role apart, which the model does not see."""
    first: dict[str, Any] = {}
    for i, message in enumerate(messages):
        if (
            message.name is not None
            and message.role != "tool"
            and first.setdefault(message.role, message.name) != message.name
        ):
            why = "another name in the same role, which the model does not see: put names into content"
            raise wrong(f"messages[{i}].name", why)
