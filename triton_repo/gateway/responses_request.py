"""The request of OpenAI's Responses API, as far as a model without tools and a server without memory can honour it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from triton_repo.gateway.fields import MOST_MESSAGES, PAIRS, Int32, Pairs, Strict, Text, ignored, only
from triton_repo.gateway.form import FlatFormat, Grammar, grammars
from triton_repo.gateway.messages import OURS, TOOLS, text_or_list
from triton_repo.gateway.schema import LOGPROBS, THINKING, Common, limited

_ALONE = "nothing is stored: send the whole conversation as input"
_HISTORY = "of an item only role and content are read"


class InputPart(Strict):
    """A part of an item's content, the user's or of an answer that comes back."""

    type: Literal["input_text", "output_text"]
    text: Text
    annotations: Any = ignored([], why=_HISTORY)
    logprobs: Any = ignored([], why=_HISTORY)


class InputMessage(Strict):
    """An item of ``input``."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"] = Field(description="developer is another name of system")
    content: Annotated[
        Annotated[Text, Tag("~text")] | Annotated[list[InputPart], Field(fail_fast=True), Tag("~list")],
        Discriminator(text_or_list),
    ]
    id: Any = ignored(why=_HISTORY)
    status: Any = ignored("completed", why=_HISTORY)
    phase: Any = ignored(why=_HISTORY)

    def plain(self) -> dict[str, str]:
        """As the served model takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class TextConfig(Strict):
    """``text``."""

    format: FlatFormat | None = None
    verbosity: Any = ignored("medium", why="say in the prompt how long the answer is to be")


class Reasoning(Strict):
    """``reasoning``."""

    effort: Any = ignored("none", why=THINKING)
    summary: Any = ignored(why=THINKING)
    generate_summary: Any = ignored(why=THINKING)


class ResponsesRequest(Common):
    """Body of ``POST /v1/responses``."""

    input: Annotated[
        Annotated[Text, Tag("~text")]
        | Annotated[list[InputMessage], Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES), Tag("~list")],
        Discriminator(text_or_list),
    ] = Field(description="what the user says, or a conversation")
    instructions: Text | None = Field(default=None, description="a system message before the input")
    max_output_tokens: Int32 | None = Field(default=None, ge=1, description="most tokens of the answer")
    metadata: Annotated[dict[str, str] | None, Pairs] = Field(
        default=None, description=f"comes back with the answer; {PAIRS}"
    )
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = ignored(
        "disabled", why="a conversation that is too long is refused, whole"
    )
    include: Annotated[list[Literal["reasoning.encrypted_content"]], Field(fail_fast=True)] | None = ignored(
        [], why=THINKING
    )
    max_tool_calls: Any = ignored(why="there are no tools")

    previous_response_id: Any = only(instead=_ALONE)
    conversation: Any = only(instead=_ALONE)
    prompt: Any = only(instead=_ALONE)
    background: Any = only(False, instead="nothing is stored: leave it out, and read the answer")
    tools: Any = only([], instead=TOOLS)
    tool_choice: Any = only("none", "auto", instead=TOOLS)
    parallel_tool_calls: Any = only(True, False, instead=TOOLS)
    top_logprobs: Any = only(0, instead=LOGPROBS)
    context_management: Any = only([], instead=OURS)
    moderation: Any = only(instead=OURS)
    # the other endpoints', which mean nothing to clients of this one
    max_tokens: Any = only(instead="set max_output_tokens")
    n: Any = only(1, instead="send one request for each answer")
    draft_every: Any = only(0, instead="ask /v1/chat/completions, whose streams have drafts")

    def grammars(self) -> list[Grammar]:
        form = None if self.text is None else self.text.format
        return list(grammars(form, regex=self.regex, choice=self.choice))

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer; None for all that the context has left."""
        return self.max_output_tokens

    def prompts(self) -> list[dict[str, Any]]:
        """The client's arguments, as those of one prompt."""
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            messages += [message.plain() for message in self.input]
        return [{"messages": messages, **limited(self.limit)}]
