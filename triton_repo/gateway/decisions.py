"""The routes of typed decisions."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from nemo_diffgemma.errors import FieldError, printable
from triton_repo.client.decisions import Decided
from triton_repo.client.failures import GenerationError
from triton_repo.gateway.decisions_request import DecisionsRequest, SystemOneRequest
from triton_repo.gateway.errors import ApiError, of_failure
from triton_repo.gateway.generations import unless_gone
from triton_repo.gateway.headers import IGNORED, trace_of

if TYPE_CHECKING:
    from triton_repo.gateway.app import Gateway


class Diagnostics(BaseModel):
    """How an answer came about; not OpenAI's."""

    label_mass: float
    argmax_is_label: float
    calibrated: bool
    standard_error: float | None = None


class PredicateAnswer(BaseModel):
    """How likely it is so."""

    type: Literal["predicate"]
    name: str | None
    probability: float
    diagnostics: Diagnostics


class ChoiceProbability(BaseModel):
    """Of one option."""

    value: str | bool
    probability: float


class ChoiceAnswer(BaseModel):
    """Which one."""

    type: Literal["choice"]
    name: str | None
    choice: str | bool
    confidence: float
    probabilities: list[ChoiceProbability]
    diagnostics: Diagnostics


class ScoreProbability(BaseModel):
    """Of one level; its value counts from 0."""

    value: int
    label: str
    probability: float


class ScoreAnswer(BaseModel):
    """How much: the expected value."""

    type: Literal["score"]
    name: str | None
    score: float
    confidence: float
    probabilities: list[ScoreProbability]
    diagnostics: Diagnostics


class InputTokens(BaseModel):
    """Of ``input_tokens``."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokens(BaseModel):
    """Of ``output_tokens``."""

    reasoning_tokens: int


class DecisionUsage(BaseModel):
    """The input counts once, whatever the number of questions; an output token is a label that was read."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class Decision(BaseModel):
    """Answer of ``/v1/decisions``."""

    model: str
    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer]
    usage: DecisionUsage


class SystemOne(BaseModel):
    """Answer of ``/v1/systemone``: by the question's id."""

    answers: dict[str, Any]
    usage: DecisionUsage


def add(app: FastAPI, gateway: Gateway, statuses: dict[int | str, dict[str, Any]]) -> None:
    """The routes, answered from ``gateway``; ``statuses`` are those of every answer."""

    @app.post("/v1/decisions", response_model=Decision, responses=statuses)
    async def decisions(request: Request, body: DecisionsRequest) -> Response:
        gateway.require_model(body.model)
        found = await _decided(gateway, request, body, [question.plain() for question in body.questions])
        answer = {"model": body.model, "answers": found.answers, "usage": _usage(found)}
        ignored = body.without_effect()
        return JSONResponse(answer, headers={IGNORED: ", ".join(ignored)} if ignored else {})

    @app.post("/v1/systemone", response_model=SystemOne, responses=statuses)
    async def systemone(request: Request, body: SystemOneRequest) -> Response:
        if body.model is not None:
            gateway.require_model(body.model)
        asked = [question.plain() | {"name": name} for name, question in body.questions.items()]
        try:
            found = await _decided(gateway, request, body, asked)
        except (FieldError, GenerationError) as error:
            failure = of_failure(error)
            if not _by_id(failure, list(body.questions)):
                raise
            request.state.record["error"] = failure.code
            raise failure from error
        answers = {a["name"]: _of_systemone(a) for a in found.answers}
        return JSONResponse({"answers": answers, "usage": _usage(found)})


_OPTIONS = re.compile(r"questions\[(\d+)\](\.name|\.(choices|levels)(\[\d+\])?(\.\w+)?)?")
_MOST_NAME = 64


def _by_id(failure: ApiError, ids: Sequence[str]) -> bool:
    """Name a question by its id, and its options as criteria; whether it is about a question at all."""
    found = _OPTIONS.match(failure.param or "")
    if found is None:
        return False
    name = printable(ids[int(found[1])])[:_MOST_NAME] + (".criteria" if found[3] else "")
    failure.rename({re.escape(found[0]): f"questions.{name}".replace("\\", r"\\")})
    return True


async def _decided(
    gateway: Gateway, request: Request, body: DecisionsRequest | SystemOneRequest, questions: list[dict[str, Any]]
) -> Decided:
    state, options = request.state, body.options()
    if state.key is not None:
        options |= gateway.owner(state.key, options["cache_salt"] or "")
    start = time.monotonic()
    work = gateway.client.decide(
        messages=body.messages(),
        questions=questions,
        request_id=state.request_id,
        traceparent=trace_of(request),
        **options,
    )
    # Answers come all at once: where tokens are counted they are waited for, whether or not the client does.
    counted = state.share is not None and state.share.counted
    found = await (work if counted else unless_gone(request, work))
    used = found.num_input_tokens + found.num_output_tokens
    state.record |= {"questions": len(questions), "first_response_seconds": round(time.monotonic() - start, 4)}
    state.record |= {"prompt_tokens": found.num_input_tokens, "completion_tokens": found.num_output_tokens}
    state.record["total_tokens"] = used
    if state.share is not None:
        state.share.owed = lambda: used
    return found


def _usage(found: Decided) -> dict[str, Any]:
    return {
        "input_tokens": found.num_input_tokens,
        "input_tokens_details": {"cached_tokens": found.num_cached_tokens, "cache_write_tokens": 0},
        "output_tokens": found.num_output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": found.num_input_tokens + found.num_output_tokens,
    }


def _of_systemone(answer: dict[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in answer.items() if key != "name"}
    if found["type"] == "predicate":
        return found | {"type": "noul"}
    key = "value" if found["type"] == "choice" else "label"
    return found | {"probabilities": {p[key]: p["probability"] for p in found["probabilities"]}}
