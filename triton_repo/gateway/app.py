"""The routes."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from nemo_diffgemma.errors import FieldError
from triton_repo.client.client import Client
from triton_repo.client.failures import GenerationError
from triton_repo.client.wire import Response as Generated
from triton_repo.gateway import answers, decisions, headers
from triton_repo.gateway.errors import ApiError, ErrorBody, of_failure, of_validation, unavailable
from triton_repo.gateway.generations import merged, unless_gone
from triton_repo.gateway.responses_answer import ModelResponse, ResponsesForm
from triton_repo.gateway.responses_request import ResponsesRequest
from triton_repo.gateway.schema import ChatRequest, CompletionRequest
from triton_repo.gateway.stream import EventStream, events, paced, premature
from triton_repo.gateway.tools import made_calls
from triton_repo.gateway.usage import Counter

_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "a field is wrong, unknown or unsupported"},
    401: {"model": ErrorBody, "description": "no API key, or one that is not known here"},
    408: {"model": ErrorBody, "description": "the request did not arrive in time"},
    413: {"model": ErrorBody, "description": "the body is too large, of too many values, or in too many chunks"},
    415: {"model": ErrorBody, "description": "the body is compressed"},
    429: {"model": ErrorBody, "description": "a limit of the API key; Retry-After says when to come again"},
    431: {"model": ErrorBody, "description": "the headers are too large"},
    500: {"model": ErrorBody, "description": "the server failed"},
    503: {"model": ErrorBody, "description": "no room now, starting or ending; Retry-After says when to come again"},
}
_MODEL: dict[int | str, dict[str, Any]] = {404: {"model": ErrorBody, "description": "there is no such model"}}
_LATE: dict[int | str, dict[str, Any]] = {504: {"model": ErrorBody, "description": "deadline ran out"}}
# Of one event; its data is a chunk, an error, or [DONE].
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_EVENTS = {"text/event-stream": {"schema": _EVENT}}
STATUSES = _REFUSALS | _MODEL | _LATE | {200: {"content": _EVENTS, "description": "the answer; events with stream"}}

_SAID = r"(messages(\[\d+\](\.\w+)*)?|prompt)(?!\w)"
# By endpoint: how a field begins where it has another name, and that name.
_NAMES: dict[str, dict[str, str]] = {
    "/v1/responses": {
        "response_format": "text.format",
        r"tools\[(\d+)\]\.function": r"tools[\1]",
        _SAID: "input",
    },
    "/v1/decisions": {_SAID: "input"},
    "/v1/systemone": {_SAID: "state"},
}

Body = ChatRequest | CompletionRequest | ResponsesRequest
# Proxies end connections that are silent for a minute, some for half of one.
HEARTBEAT_S = 10.0


class Gateway:
    """What the routes answer from.

    Args:
        client: connected to the model server.
        model: name that requests use.
    """

    def __init__(self, client: Client, model: str):
        self.client = client
        self._model = model
        self._created = int(time.time())
        self._secret = secrets.token_bytes(32)

    def models(self) -> list[dict[str, Any]]:
        """The one model there is."""
        return [{"id": self._model, "object": "model", "created": self._created, "owned_by": "diffgemma"}]

    def require_model(self, name: str) -> None:
        """Raise :class:`ApiError` for another model's name."""
        if name != self._model:
            message = f"there is no model of this name; there is {self._model}"
            raise ApiError(404, message, code="model_not_found", param="model")

    async def answer(self, request: Request, body: Body) -> Response:
        """Generate what ``body`` asks for."""
        self.require_model(body.model)
        request_id, record, share = request.state.request_id, request.state.record, request.state.share
        form, counter, seed = _form(request_id, body), Counter(body.choices), body.first_seed()
        # In one piece nothing would be known of an answer that its client does not wait for.
        stream = bool(body.stream) or (share is not None and share.counted)
        trace, key = headers.trace_of(request), request.state.key
        generations = self._generations(body, seed, request_id, trace, key, stream=stream)
        record |= {"stream": bool(body.stream), "choices": len(generations)}
        if share is not None:
            share.owed = counter.owed
            share.take(len(generations) - 1)  # it has one
        responses = _recorded(generations, record, counter)
        if not body.stream:
            whole = await unless_gone(request, _whole(form, responses, counter, len(generations)))
            return JSONResponse(whole, headers=headers.of_answer(body, seed, counter))
        # The status is decided by the first response, and cannot be changed after it; nor can it wait for ever.
        steady = paced(responses, HEARTBEAT_S)
        first = await unless_gone(request, anext(steady))
        return EventStream(
            events(form, _chained(first, steady), counter, record), headers.of_answer(body, seed, counter)
        )

    def _generations(
        self, body: Body, seed: int, request_id: str, traceparent: str | None, key: str | None, *, stream: bool
    ) -> list[AsyncGenerator[Generated, None]]:
        shared, prompts = body.inputs(), body.prompts()
        if key is not None:
            # Keys take turns: with several names one would get more of them. And no key finds what another has sent.
            shared |= self.owner(key, shared["cache_salt"] or "")
        # An infilled gap comes in one piece.
        stream = stream and not any(prompt.get("suffix") for prompt in prompts)
        jobs = [(prompt, i) for prompt in prompts for i in range(body.choices)]
        names = [request_id if len(jobs) == 1 else f"{request_id}-{index}" for index in range(len(jobs))]
        return [
            self.client.generate(
                **{**shared, **prompt}, seed=seed + i, stream=stream, request_id=name, traceparent=traceparent
            )
            for (prompt, i), name in zip(jobs, names, strict=True)
        ]

    def owner(self, key: str, salt: str) -> dict[str, str]:
        """What a key's requests are sent on with: its own salt nobody can spell who asks past the gateway."""
        secret = hmac.digest(self._secret, f"{key}:{salt}".encode(), "sha256").hex()
        return {"client": key, "cache_salt": secret}


def create(gateway: Gateway) -> FastAPI:
    """The application; it closes the gateway's client when it ends."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with gateway.client:
            yield

    app = FastAPI(title="diffgemma", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/openapi.json")

    @app.post("/v1/chat/completions", response_model=answers.ChatCompletion, responses=STATUSES)
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        return await gateway.answer(request, body)

    @app.post("/v1/completions", response_model=answers.Completion, responses=STATUSES)
    async def completions(request: Request, body: CompletionRequest) -> Response:
        return await gateway.answer(request, body)

    @app.post("/v1/responses", response_model=ModelResponse, responses=STATUSES)
    async def responses(request: Request, body: ResponsesRequest) -> Response:
        return await gateway.answer(request, body)

    decisions.add(app, gateway, STATUSES)

    @app.get("/v1/models", response_model=answers.Models, responses=_REFUSALS)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": gateway.models()}

    @app.get("/v1/models/{model}", response_model=answers.Model, responses=_REFUSALS | _MODEL)
    async def model(model: str) -> dict[str, Any]:
        gateway.require_model(model)
        return gateway.models()[0]

    @app.head("/health", include_in_schema=False)
    @app.get("/health", response_model=answers.HealthAnswer, responses=_REFUSALS)
    async def health() -> dict[str, str]:
        if not await gateway.client.is_ready():
            raise unavailable("the model server is not ready")
        return {"status": "ready"}

    @app.exception_handler(ApiError)
    async def failed(_request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(GenerationError)
    @app.exception_handler(FieldError)
    async def not_generated(request: Request, error: GenerationError | FieldError) -> Response:
        failure = of_failure(error)
        failure.rename(_NAMES.get(request.url.path, {}))
        request.state.record["error"] = failure.code
        return await failed(request, failure)

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> Response:
        return await failed(request, of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def not_found(_request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        body = ApiError(error.status_code, str(error.detail), code=code).body()
        return JSONResponse(body, error.status_code, error.headers)

    return app


def _form(request_id: str, body: Body) -> answers.Form:
    if isinstance(body, ResponsesRequest):
        return ResponsesForm(request_id, body)
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return answers.CompletionForm(request_id, body.model, chat=isinstance(body, ChatRequest), usage=usage)


async def _whole(
    form: answers.Form, responses: AsyncIterator[tuple[int, Generated]], counter: Counter, choices: int
) -> dict[str, Any]:
    said = [answers.Said() for _ in range(choices)]
    async for index, response in responses:
        if error := premature(response.finish_reason):
            raise error
        one = said[index]
        one.text += response.text
        one.reason = response.finish_reason or ""
        one.calls += made_calls(response.tool_calls)
    return form.whole(said, counter)


async def _recorded(
    generations: list[AsyncGenerator[Generated, None]], record: dict[str, Any], counter: Counter
) -> AsyncGenerator[tuple[int, Generated], None]:
    """All responses; what they tell goes to the log's record and the counter."""
    start = time.monotonic()
    try:
        async with aclosing(merged(generations)) as responses:
            async for index, response in responses:
                record.setdefault("first_response_seconds", round(time.monotonic() - start, 4))
                counter.add(index, response)
                yield index, response
    finally:
        record |= counter.tokens()


async def _chained(
    first: tuple[int, Generated] | None, rest: AsyncGenerator[tuple[int, Generated] | None, None]
) -> AsyncGenerator[tuple[int, Generated] | None, None]:
    async with aclosing(rest):
        yield first
        async for item in rest:
            yield item
