"""What a precision costs: answers of engines that differ in nothing else, to the same held-out questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nemo_diffgemma.errors import require
from nemo_diffgemma.questions import Question
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


def checked_loss(exact: Quality, found: Quality, largest: float) -> float:
    """Exact match that an engine loses against the float32 one.

    Raises:
        FieldError: when that is more than ``largest``.
    """
    loss = round(exact.exact_match - found.exact_match, 4)
    require(
        loss <= largest,
        "quality:exact_match",
        f"{loss} less than float32's",
        f"at most {largest} less (largest_loss)",
        "build with precision=bf16, or allow more with largest_loss=X",
    )
    return loss


def answer(engine: Engine, questions: Sequence[Question]) -> Quality:
    """Ask every question with a seed of its own.

    Raises:
        FieldError: when a question does not fit the engine.
    """
    tokenizer = engine.tokenizer
    assert tokenizer is not None, "questions are text"
    canvas = engine.limits.canvas
    # room for the longest right answer and its end of sequence, in whole canvases
    longest = max(len(tokenizer.literal(q.answer)) + 1 for q in questions)
    room = -(-longest // canvas) * canvas
    requests = [
        Request(tuple(tokenizer.chat(q.messages, tools=q.tools)), room, seed, engine.sampler)
        for seed, q in enumerate(questions)
    ]
    answers = engine.run(requests)
    right = sum(a.text == q.answer for a, q in zip(answers, questions, strict=True))
    steps = [s for a in answers for s in a.denoising_steps]
    return Quality(right / len(questions), sum(steps) / len(steps))
