"""Answers to questions, as the client gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triton_repo.client.failures import Cancelled, GenerationError, TimedOut
from triton_repo.client.wire import Response


@dataclass(frozen=True)
class Decided:
    """Answers, in the order of the questions.

    Args:
        answers: ``{"type", "name", ...}`` each: ``probability`` of a predicate; ``choice``, ``confidence`` and
            ``probabilities`` of a choice; ``score`` and the same of a score; ``diagnostics``.
        num_input_tokens: of the input, which counts once, and of the questions.
        num_cached_tokens: of them, found in the cache of an earlier request.
        num_output_tokens: labels that were read.
    """

    answers: list[dict[str, Any]]
    num_input_tokens: int
    num_cached_tokens: int
    num_output_tokens: int


def inputs_of(
    text: str | None,
    messages: Sequence[Mapping[str, str]] | None,
    questions: Sequence[Mapping[str, Any]],
    others: Mapping[str, object],
) -> dict[str, object]:
    """The served model's inputs."""
    said = None if messages is None else json.dumps(list(messages))
    return {"text_input": text, "messages": said, "questions": json.dumps(list(questions)), **others}


def decided(response: Response) -> Decided:
    """What a response says.

    Raises:
        TimedOut, Cancelled: when it ended before all questions were answered.
        GenerationError: when the server does not know questions.
    """
    if response.finish_reason == "deadline":
        raise TimedOut("the deadline ran out before the answer was complete")
    if response.finish_reason == "cancelled":
        raise Cancelled("the request was cancelled on the server")
    if response.answers is None:
        raise GenerationError("the server generates, and answers no questions")
    counts = response.num_input_tokens or 0, response.num_cached_tokens or 0, response.num_output_tokens or 0
    return Decided(json.loads(response.answers), *counts)
