"""The answers of OpenAI's API: whole ones, and the chunks of a stream."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from triton_repo.client.wire import Response

FinishReason = Literal["stop", "length"]


class Usage(BaseModel):
    """Tokens of a request; each prompt counts once, whatever ``n``."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    """The model's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


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


@dataclass
class Counter:
    """Tokens, as the responses tell them.

    Args:
        choices: answers to each prompt.
    """

    choices: int
    _prompts: dict[int, int] = field(default_factory=dict)
    _answers: dict[int, int] = field(default_factory=dict)

    def add(self, index: int, response: Response) -> None:
        """Count a response to choice ``index``."""
        if not response.provisional:
            self._prompts[index // self.choices] = response.num_input_tokens or 0
            self._answers[index] = response.num_output_tokens or 0

    def usage(self) -> dict[str, int]:
        """What has been used so far."""
        prompt, answer = sum(self._prompts.values()), sum(self._answers.values())
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


class Form:
    """How one of the two endpoints writes what it answers.

    Args:
        request_id: becomes part of the answer's.
        model: name that the request asked for.
        chat: whether it is a chat.
    """

    def __init__(self, request_id: str, model: str, *, chat: bool):
        self._chat = chat
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{request_id}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, texts: list[tuple[str, str]], usage: dict[str, int]) -> dict[str, Any]:
        """The answer to a request without stream; ``texts`` with their finish reasons, by choice."""
        choices = []
        for index, (text, reason) in enumerate(texts):
            said: dict[str, Any] = {"text": text}
            if self._chat:
                said = {"message": {"role": "assistant", "content": text, "refusal": None}}
            choices.append({"index": index, **said, "logprobs": None, "finish_reason": reason})
        name = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": name, "choices": choices, "usage": usage}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Chunks before the first text of a choice."""
        return [self._chunk([self._part(index, {"role": "assistant", "content": ""}, None)])] if self._chat else []

    def text(self, index: int, text: str) -> dict[str, Any]:
        """A chunk with new text."""
        return self._chunk([self._part(index, {"content": text} if self._chat else text, None)])

    def end(self, index: int, reason: str) -> dict[str, Any]:
        """A choice's last chunk."""
        return self._chunk([self._part(index, {} if self._chat else "", reason)])

    def draft(self, index: int, response: Response) -> dict[str, Any]:
        """A provisional canvas: no choice, so that a client that knows nothing of drafts passes over it."""
        draft = {
            "index": index,
            "text": response.text,
            "canvas_index": response.canvas_index,
            "denoising_steps": response.denoising_steps,
            "entropy": response.entropy,
        }
        return self._chunk([]) | {"provisional": True, "diffgemma": draft}

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """The chunk after the last choice's end, for those who asked for it."""
        return self._chunk([]) | {"usage": usage}

    def _part(self, index: int, said: Any, reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta" if self._chat else "text": said, "logprobs": None, "finish_reason": reason}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        name = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head, "object": name, "choices": choices}
