"""The request of OpenAI's Responses API, as far as a server without memory can honour it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from triton_repo.gateway.fields import (
    MOST_MESSAGES,
    PAIRS,
    Int32,
    Pairs,
    Parts,
    Strict,
    Text,
    by_type,
    ignored,
    only,
    wrong,
)
from triton_repo.gateway.form import FlatFormat, Grammar, grammars, with_instruction
from triton_repo.gateway.messages import OURS, text_or_list
from triton_repo.gateway.schema import LOGPROBS, THINKING, Common, limited
from triton_repo.gateway.tools import MOST_TOOLS, UNASKED, Arguments, FlatChoice, FlatTool, call, tools_grammar, unasked

_ALONE = "nothing is stored: send the whole conversation as input"
_HISTORY = "of an item only role and content are read"
_CALL = "a call and its result are told apart by call_id"


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


class CallItem(Strict):
    """A call, of an answer that comes back."""

    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Arguments
    id: Any = ignored(why=_CALL)
    status: Any = ignored("completed", why=_CALL)

    def plain(self) -> dict[str, Any]:
        """As the served model takes it."""
        return {"role": "assistant", "content": "", "tool_calls": [call(self.call_id, self.name, self.arguments)]}


class ResultItem(Strict):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: Text
    output: Annotated[
        Annotated[Text, Tag("~text")] | Annotated[list[InputPart], Field(fail_fast=True), Tag("~list")],
        Discriminator(text_or_list),
    ]
    id: Any = ignored(why=_CALL)
    status: Any = ignored("completed", why=_CALL)

    def plain(self) -> dict[str, Any]:
        """As the served model takes it."""
        text = self.output if isinstance(self.output, str) else "".join(part.text for part in self.output)
        return {"role": "tool", "content": text, "tool_call_id": self.call_id}


InputItem = Annotated[
    Annotated[InputMessage, Tag("~message")]
    | Annotated[CallItem, Tag("~function_call")]
    | Annotated[ResultItem, Tag("~function_call_output")],
    by_type("message", "function_call", "function_call_output", otherwise="message"),
]


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
        | Annotated[
            list[InputItem], Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES), Parts, Tag("~list")
        ],
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
    max_tool_calls: Any = ignored(why="no tool is called here: the calls are yours to make")

    previous_response_id: Any = only(instead=_ALONE)
    conversation: Any = only(instead=_ALONE)
    prompt: Any = only(instead=_ALONE)
    background: Any = only(False, instead="nothing is stored: leave it out, and read the answer")
    tools: Annotated[list[FlatTool], Field(fail_fast=True, max_length=MOST_TOOLS)] | None = Field(
        default=None, description="functions that the model may call"
    )
    tool_choice: FlatChoice = Field(default=None, description="whether it calls, or which of them; default auto")
    parallel_tool_calls: bool | None = Field(default=None, description="several calls in an answer; default true")
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

    def grammar(self) -> Grammar | None:
        form = self.form()
        return tools_grammar(self.tools or (), self.tool_choice, self.parallel_tool_calls, form) or form

    @model_validator(mode="after")
    def _tools_fit(self) -> Self:
        self.grammar()
        if isinstance(self.input, list) and (i := unasked([item.plain() for item in self.input])) is not None:
            raise wrong(f"input[{i}].call_id", UNASKED)
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer; None for all that the context has left."""
        return self.max_output_tokens

    def prompts(self) -> list[dict[str, Any]]:
        """The client's arguments, as those of one prompt."""
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            for item in self.input:
                said = item.plain()
                # calls are of the turn before them, in which the model wrote them
                if isinstance(item, CallItem) and messages and messages[-1]["role"] == "assistant":
                    messages[-1].setdefault("tool_calls", []).extend(said["tool_calls"])
                else:
                    messages.append(said)
        unasked(messages)
        return [{"messages": with_instruction(messages, self.form()), **limited(self.limit)}]
