"""The answers of OpenAI's API: whole ones, and the chunks of a stream."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import BaseModel

from triton_repo.client.wire import Response
from triton_repo.gateway.errors import ApiError
from triton_repo.gateway.tools import MadeCall
from triton_repo.gateway.usage import Counter, Usage

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass
class Said:
    """One answer.

    Args:
        text: of it.
        reason: why it ends.
        calls: of tools, in order.
    """

    text: str = ""
    reason: str = ""
    calls: list[MadeCall] = field(default_factory=list)


class CalledFunction(BaseModel):
    """A function, and the JSON of its arguments."""

    name: str
    arguments: str


class AnswerCall(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(BaseModel):
    """The model's turn."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[AnswerCall] | None = None


class ChatChoice(BaseModel):
    """One answer of a chat."""

    index: int
    message: AnswerMessage
    logprobs: None
    finish_reason: FinishReason


class TextChoice(BaseModel):
    """One answer of a completion."""

    index: int
    text: str
    logprobs: None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """Answer of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Completion(BaseModel):
    """Answer of ``/v1/completions``."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class Model(BaseModel):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    """Answer of ``/v1/models``."""

    object: Literal["list"]
    data: list[Model]


class HealthAnswer(BaseModel):
    """Answer of ``/health``."""

    status: Literal["ready"]


class Form(Protocol):
    """How an endpoint writes what it answers; a chunk is the JSON object of an event."""

    last: bytes  # after the last event of a stream that has come to its end

    def whole(self, said: list[Said], counter: Counter) -> dict[str, Any]:
        """The answer to a request without stream, by choice."""

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Chunks before the first text of a choice."""

    def text(self, index: int, text: str) -> list[dict[str, Any]]:
        """Chunks with new text."""

    def calls(self, index: int, calls: list[MadeCall]) -> list[dict[str, Any]]:
        """Chunks with new calls."""

    def draft(self, index: int, response: Response) -> dict[str, Any]:
        """A provisional canvas."""

    def end(self, index: int, reason: str, counter: Counter) -> list[dict[str, Any]]:
        """A choice's last chunks."""

    def closing(self, counter: Counter) -> list[dict[str, Any]]:
        """Chunks after the last choice's end."""

    def failed(self, error: ApiError) -> dict[str, Any]:
        """What ends a stream that cannot go on."""


class CompletionForm:
    """Of chats and completions.

    Args:
        request_id: becomes part of the answer's.
        model: name that the request asked for.
        chat: whether it is a chat.
        usage: a stream ends with the usage of the whole request.
    """

    last = b"data: [DONE]\n\n"

    def __init__(self, request_id: str, model: str, *, chat: bool, usage: bool):
        self._chat, self._usage = chat, usage
        self._called: dict[int, int] = {}  # calls of each choice that a stream has had
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{request_id}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, said: list[Said], counter: Counter) -> dict[str, Any]:
        choices = []
        for index, one in enumerate(said):
            written: dict[str, Any] = {"text": one.text}
            if self._chat:
                message: dict[str, Any] = {"role": "assistant", "content": one.text, "refusal": None}
                if one.calls:
                    message |= {"content": one.text or None, "tool_calls": [_call(made) for made in one.calls]}
                written = {"message": message}
            reason = "tool_calls" if one.calls else one.reason
            choices.append({"index": index, **written, "logprobs": None, "finish_reason": reason})
        name = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": name, "choices": choices, "usage": counter.usage()}

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [self._chunk([self._part(index, {"role": "assistant", "content": ""}, None)])] if self._chat else []

    def text(self, index: int, text: str) -> list[dict[str, Any]]:
        return [self._chunk([self._part(index, {"content": text} if self._chat else text, None)])]

    def calls(self, index: int, calls: list[MadeCall]) -> list[dict[str, Any]]:
        before = self._called.get(index, 0)
        self._called[index] = before + len(calls)
        said = [{"index": before + i, **_call(made)} for i, made in enumerate(calls)]
        return [self._chunk([self._part(index, {"tool_calls": said}, None)])]

    def end(self, index: int, reason: str, _counter: Counter) -> list[dict[str, Any]]:
        reason = "tool_calls" if self._called.get(index) else reason
        return [self._chunk([self._part(index, {} if self._chat else "", reason)])]

    def draft(self, index: int, response: Response) -> dict[str, Any]:
        """No choice, so that a client that knows nothing of drafts passes over it."""
        draft = {
            "index": index,
            "text": response.text,
            "canvas_index": response.canvas_index,
            "denoising_steps": response.denoising_steps,
            "entropy": response.entropy,
        }
        return self._chunk([]) | {"provisional": True, "diffgemma": draft}

    def closing(self, counter: Counter) -> list[dict[str, Any]]:
        return [self._chunk([]) | {"usage": counter.usage()}] if self._usage else []

    def failed(self, error: ApiError) -> dict[str, Any]:
        return error.body()

    def _part(self, index: int, said: Any, reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta" if self._chat else "text": said, "logprobs": None, "finish_reason": reason}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        name = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head, "object": name, "choices": choices}


def _call(made: MadeCall) -> dict[str, Any]:
    return {"id": made.id, "type": "function", "function": {"name": made.name, "arguments": made.arguments}}
