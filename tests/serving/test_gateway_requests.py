"""How requests are checked, without a server."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from triton_repo.gateway.errors import of_validation
from triton_repo.gateway.fields import PAIRS
from triton_repo.gateway.responses_request import ResponsesRequest
from triton_repo.gateway.schema import ChatRequest, CompletionRequest

REQUESTS: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (ResponsesRequest, {"input": "red"}),
    (CompletionRequest, {"prompt": "red"}),
    (ChatRequest, {"messages": [{"role": "user", "content": "red"}]}),
]


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
    with pytest.raises(ValidationError) as error:
        kind.model_validate({"model": "diffgemma", **asked, "metadata": metadata})
    (found,) = error.value.errors()
    # as FastAPI says where
    answer = of_validation([{**found, "loc": ("body", *found["loc"])}])
    assert (answer.status, answer.param, answer.message) == (400, "metadata", f"metadata: {PAIRS}")


@pytest.mark.parametrize(("kind", "asked"), REQUESTS, ids=lambda value: getattr(value, "__name__", ""))
def test_as_much_metadata_as_openai_takes(kind: type[BaseModel], asked: Any) -> None:
    for metadata in (None, {}, {f"{i:064}": "ü" * 512 for i in range(16)}):
        kind.model_validate({"model": "diffgemma", **asked, "metadata": metadata})
