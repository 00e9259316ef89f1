"""The answers of OpenAI's Responses API: whole ones, and the events of a stream."""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import BaseModel

from triton_repo.client.wire import Response
from triton_repo.gateway.answers import Said
from triton_repo.gateway.errors import ApiError
from triton_repo.gateway.responses_request import ResponsesRequest
from triton_repo.gateway.tools import MadeCall
from triton_repo.gateway.usage import Counter, DiffusionUsage

_Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(BaseModel):
    """What the model says."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputMessage(BaseModel):
    """The model's turn."""

    type: Literal["message"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(BaseModel):
    """A call of a tool."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["in_progress", "completed"]


class InputTokensDetails(BaseModel):
    """Of ``input_tokens``: those found in the cache of an earlier request."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(BaseModel):
    """Of ``output_tokens``."""

    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """Tokens of a request, and its canvases."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int
    diffgemma: DiffusionUsage


class IncompleteDetails(BaseModel):
    """Why an answer ends early."""

    reason: Literal["max_output_tokens"]


class FailureDetail(BaseModel):
    """Why there is no answer, in a stream."""

    code: Literal["server_error", "invalid_prompt"]
    message: str
    param: str | None


class ModelResponse(BaseModel):
    """Answer of ``/v1/responses``."""

    id: str
    object: Literal["response"]
    created_at: int
    status: _Status
    error: FailureDetail | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputMessage | OutputCall]
    parallel_tool_calls: bool
    previous_response_id: None
    metadata: dict[str, str]
    tool_choice: str | dict[str, Any]
    tools: list[Any]
    text: dict[str, Any]
    truncation: Literal["disabled"]
    usage: ResponseUsage | None


class ResponsesForm:
    """Of one answer, which is a message of one text, calls of tools, or both.

    Args:
        request_id: becomes part of the answer's.
        body: the request.
    """

    last = b""

    def __init__(self, request_id: str, body: ResponsesRequest):
        self._item = f"msg_{request_id}"
        self._head = {
            "id": f"resp_{request_id}",
            "object": "response",
            "created_at": int(time.time()),
            "instructions": body.instructions,
            "max_output_tokens": body.limit,
            "model": body.model,
            "parallel_tool_calls": bool(body.tools) and body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "metadata": body.metadata or {},
            "tool_choice": _sent(body.tool_choice) or ("auto" if body.tools else "none"),
            "tools": [_sent(tool) for tool in body.tools or ()],
            "text": {"format": _sent(body.text and body.text.format) or {"type": "text"}},
            "truncation": "disabled",
        }
        self._text = ""
        self._open = False  # the message
        self._items: list[dict[str, Any]] = []  # of the answer, whole
        self._end: _Status = "failed"
        self._events = 0

    def whole(self, said: list[Said], counter: Counter) -> dict[str, Any]:
        (one,) = said
        self._text, self._end = one.text, _ended(one.reason)
        if one.text or not one.calls:
            self._items.append(self._message(self._end))
        self._items += [self._call(made, "completed") for made in one.calls]
        return self._response(self._end, counter)

    def opening(self, _index: int) -> list[dict[str, Any]]:
        return [
            self._event("created", response=self._response("in_progress")),
            self._event("in_progress", response=self._response("in_progress")),
        ]

    def text(self, _index: int, text: str) -> list[dict[str, Any]]:
        opened = self._begin()
        self._text += text
        return [*opened, self._event("output_text.delta", **self._place(), delta=text, logprobs=[])]

    def calls(self, _index: int, calls: list[MadeCall]) -> list[dict[str, Any]]:
        found = self._finish("completed")
        for made in calls:
            place = {"item_id": f"fc_{made.id}", "output_index": len(self._items)}
            done = self._call(made, "completed")
            begun = self._call(made, "in_progress") | {"arguments": ""}
            found += [
                self._event("output_item.added", output_index=len(self._items), item=begun),
                self._event("function_call_arguments.delta", **place, delta=made.arguments),
                self._event("function_call_arguments.done", **place, name=made.name, arguments=made.arguments),
                self._event("output_item.done", output_index=len(self._items), item=done),
            ]
            self._items.append(done)
        return found

    def draft(self, _index: int, _response: Response) -> dict[str, Any]:
        raise AssertionError("the schema refuses draft_every")

    def end(self, _index: int, reason: str, _counter: Counter) -> list[dict[str, Any]]:
        self._end = _ended(reason)
        # an answer without calls has a message, if an empty one
        opened = [] if self._items else self._begin()
        return [*opened, *self._finish(self._end)]

    def closing(self, counter: Counter) -> list[dict[str, Any]]:
        return [self._event(self._end, response=self._response(self._end, counter))]

    def failed(self, error: ApiError) -> dict[str, Any]:
        detail = FailureDetail(
            code="invalid_prompt" if error.status < 500 else "server_error", message=error.message, param=error.param
        )
        return self._event("failed", response=self._response("failed") | {"error": detail.model_dump()})

    def _begin(self) -> list[dict[str, Any]]:
        """Events before the first text."""
        if self._open:
            return []
        self._open = True
        message = self._message("in_progress") | {"content": []}
        return [
            self._event("output_item.added", output_index=0, item=message),
            self._event("content_part.added", **self._place(), part=self._part("")),
        ]

    def _finish(self, status: str) -> list[dict[str, Any]]:
        """Events behind the last text, which comes before any call."""
        if not self._open or self._items:
            return []
        self._items.append(self._message(status))
        return [
            self._event("output_text.done", **self._place(), text=self._text, logprobs=[]),
            self._event("content_part.done", **self._place(), part=self._part(self._text)),
            self._event("output_item.done", output_index=0, item=self._items[0]),
        ]

    def _call(self, made: MadeCall, status: str) -> dict[str, Any]:
        called = {"call_id": made.id, "name": made.name, "arguments": made.arguments}
        return {"type": "function_call", "id": f"fc_{made.id}", "status": status, **called}

    def _event(self, name: str, /, **fields: Any) -> dict[str, Any]:
        self._events += 1
        return {"type": f"response.{name}", "sequence_number": self._events - 1, **fields}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _message(self, status: str) -> dict[str, Any]:
        parts = [self._part(self._text)]
        return {"type": "message", "id": self._item, "status": status, "role": "assistant", "content": parts}

    def _response(self, status: _Status, counter: Counter | None = None) -> dict[str, Any]:
        ended = status in ("completed", "incomplete")
        return {
            **self._head,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": self._items if ended else [],
            "usage": None if counter is None else _usage(counter),
        }


def _sent(value: Any) -> Any:
    """As the client sent it."""
    return value.model_dump(exclude_none=True, by_alias=True) if isinstance(value, BaseModel) else value


def _ended(reason: str) -> _Status:
    return "incomplete" if reason == "length" else "completed"


def _usage(counter: Counter) -> dict[str, Any]:
    tokens = counter.tokens()
    return {
        "input_tokens": tokens["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": counter.cached(), "cache_write_tokens": 0},
        "output_tokens": tokens["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens["total_tokens"],
        "diffgemma": counter.diffusion(),
    }
