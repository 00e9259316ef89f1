"""What an answer says of its request beside OpenAI's API, in headers."""

from __future__ import annotations

from starlette.requests import Request

from triton_repo.gateway.responses_request import ResponsesRequest
from triton_repo.gateway.schema import ChatRequest, CompletionRequest
from triton_repo.gateway.usage import Counter
from triton_repo.tensors import TRACEPARENT

REQUEST_ID = "x-request-id"
IGNORED = "x-diffgemma-ignored"
MAX_TOKENS = "x-diffgemma-max-tokens"
SEED = "x-diffgemma-seed"


def of_answer(body: ChatRequest | CompletionRequest | ResponsesRequest, seed: int, counter: Counter) -> dict[str, str]:
    """Which fields had no effect; the limit where it is not the one asked for; the seed where it was drawn.

    Args:
        body: the request.
        seed: of its first answer.
        counter: has counted a response; before the first it knows no limit.
    """
    found = {}
    if names := body.without_effect():
        found[IGNORED] = ", ".join(names)
    if body.limit is not None and counter.max_tokens is not None and counter.max_tokens < body.limit:
        found[MAX_TOKENS] = str(counter.max_tokens)
    if seed != (body.seed or 0):
        found[SEED] = str(seed)
    return found


def trace_of(request: Request) -> str | None:
    """W3C trace context, to be passed on; left out where it is malformed, as the standard asks."""
    parent = request.headers.get("traceparent", "")
    return parent if TRACEPARENT.fullmatch(parent) else None
