"""What a precision costs: answers of engines that differ in nothing else, to the same held-out questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_diffgemma.checkpoint import HELD_OUT
from nemo_diffgemma.errors import require
from nemo_diffgemma.questions import Question
from nemo_diffgemma.tokenizer import Tokenizer
from trtllm_build.runtime.engine import Engine
from trtllm_build.runtime.request import Request

QUESTIONS = 200  # at most: enough for a hundredth to be two answers


@dataclass(frozen=True)
class Quality:
    """How an engine answered.

    Args:
        exact_match: share of answers that are right to the character.
        steps_per_canvas: mean denoising steps.
    """

    exact_match: float
    steps_per_canvas: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def not_measured(held_out: Path | None) -> str:
    """Why a build measures no quality, as it tells: it has no questions, or no tokenizer to ask them with."""
    if held_out is None:
        return f"quality  not measured: no held_out=FILE, and no {HELD_OUT} in the checkpoint"
    return "quality  not measured: the checkpoint has no tokenizer"


def checked_loss(exact: Quality, found: Quality, largest: float) -> float:
    """Exact match that an engine loses against the float32 one.

    Raises:
        FieldError: when that is more than ``largest``.
    """
    loss = round(exact.exact_match - found.exact_match, 4)
    require(
        loss <= largest,
        field="quality:exact_match",
        value=f"{loss} less than float32's",
        allowed=f"at most {largest} less (largest_loss)",
        fix="build with precision=bf16, or allow more with largest_loss=X",
    )
    return loss


def room(tokenizer: Tokenizer, question: Question, canvas: int) -> int:
    """Tokens for the right answer and its end of sequence, in whole canvases: what training takes them for."""
    return -(-(len(tokenizer.literal(question.answer)) + 1) // canvas) * canvas


def answer(engine: Engine, questions: Sequence[Question]) -> Quality:
    """Ask every question with a seed of its own.

    Raises:
        FieldError: when a question does not fit the engine.
    """
    tokenizer = engine.tokenizer
    assert tokenizer is not None, "questions are text"
    canvas = engine.limits.canvas
    requests = [
        Request(tuple(tokenizer.chat(q.messages, tools=q.tools)), room(tokenizer, q, canvas), seed, engine.sampler)
        for seed, q in enumerate(questions)
    ]
    answers = engine.run(requests)
    right = sum(a.text == q.answer for a, q in zip(answers, questions, strict=True))
    steps = [s for a in answers for s in a.denoising_steps]
    return Quality(right / len(questions), sum(steps) / len(steps))
