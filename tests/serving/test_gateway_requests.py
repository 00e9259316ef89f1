"""How requests are checked, without a server."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from triton_repo.gateway.decisions_request import DecisionsRequest, SystemOneRequest
from triton_repo.gateway.errors import ApiError, of_validation
from triton_repo.gateway.fields import PAIRS, PARTS
from triton_repo.gateway.responses_request import ResponsesRequest
from triton_repo.gateway.schema import ChatRequest, CompletionRequest

REQUESTS: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (ResponsesRequest, {"input": "red"}),
    (CompletionRequest, {"prompt": "red"}),
    (ChatRequest, {"messages": [{"role": "user", "content": "red"}]}),
]


def refusal(kind: type[BaseModel], asked: dict[str, Any]) -> ApiError:
    with pytest.raises(ValidationError) as error:
        kind.model_validate({"model": "diffgemma", **asked})
    (found,) = error.value.errors()
    # as FastAPI says where
    return of_validation([{**found, "loc": ("body", *found["loc"])}])


@pytest.mark.parametrize(("kind", "asked"), REQUESTS, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize(
    "metadata",
    [
        {f"k{i}": i for i in range(10**5)},
        {f"k{i}": "v" for i in range(17)},
        {"k" * 65: "v"},
        {"k": "v" * 513},
        {"k": 5},
        {"k": {"deep": "v"}},
        {"\ud800": "v"},
        {"k": "\ud800"},
        ["k", "v"],
        "k",
    ],
    ids=["many", "17", "long name", "long text", "number", "deep", "half name", "half text", "list", "text"],
)
def test_metadata_is_bounded_before_it_is_looked_at(kind: type[BaseModel], asked: Any, metadata: Any) -> None:
    answer = refusal(kind, {**asked, "metadata": metadata})
    assert (answer.status, answer.param, answer.message) == (400, "metadata", f"metadata: {PAIRS}")


@pytest.mark.parametrize(("kind", "asked"), REQUESTS, ids=lambda value: getattr(value, "__name__", ""))
def test_as_much_metadata_as_openai_takes(kind: type[BaseModel], asked: Any) -> None:
    for metadata in (None, {}, {f"{i:064}": "ü" * 512 for i in range(16)}):
        kind.model_validate({"model": "diffgemma", **asked, "metadata": metadata})


# Each of these is wrong by itself: that it is not looked at shows in what is refused.
PART = {"type": "of another kind"}
QUESTION = {"type": "predicate", "instructions": "red?"}


@pytest.mark.parametrize(
    ("kind", "field", "item", "more"),
    [
        (ChatRequest, "messages", {"role": "user", "content": [PART] * 8193}, {}),
        (ChatRequest, "messages", {"role": "assistant", "tool_calls": [PART] * 8193}, {}),
        (ResponsesRequest, "input", {"role": "user", "content": [PART] * 8193}, {}),
        (ResponsesRequest, "input", {"type": "function_call_output", "call_id": "a", "output": [PART] * 8193}, {}),
        (DecisionsRequest, "input", {"role": "user", "content": [PART] * 8193}, {"questions": [QUESTION]}),
        (DecisionsRequest, "questions", {"type": "predicate", "instructions": [PART] * 8193}, {"input": "red"}),
    ],
)
def test_parts_are_bounded_before_they_are_looked_at(
    kind: type[BaseModel], field: str, item: dict[str, Any], more: dict[str, Any]
) -> None:
    half = {name: value[: len(value) // 2 + 1] if isinstance(value, list) else value for name, value in item.items()}
    for items in ([item], [half, half]):
        answer = refusal(kind, {**more, field: items})
        assert (answer.status, answer.param, answer.message) == (400, field, f"{field}: {PARTS}")


def test_as_many_parts_as_there_may_be() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "red"}] * 4096}
    ChatRequest.model_validate({"model": "diffgemma", "messages": [message, message]})


@pytest.mark.parametrize("criteria", [["a"] * 256, {str(i): None for i in range(256)}], ids=["list", "object"])
def test_options_are_bounded(criteria: Any) -> None:
    answer = refusal(
        SystemOneRequest,
        {"state": "red", "questions": {"q": {"type": "choice", "instructions": "?", "criteria": criteria}}},
    )
    assert (answer.status, answer.param) == (400, "questions.q.criteria")
    assert answer.message.endswith("cannot be used; allowed: a list of at most 255; fix: correct it")
