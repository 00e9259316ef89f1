"""One canvas at each of its denoising steps, token by token; a server's drafts tell the mean entropy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from nemo_diffgemma.chat import Message
from triton_repo.demo.evaluate import Answer
from trtllm_build.backends import load_backend
from trtllm_build.bundle import Bundle
from trtllm_build.contract import Backend, CanvasStep, ReadOut
from trtllm_build.runtime.engine import Engine

_MOST_STEPS = 16  # more would not fit on a picture
_FEWEST_TOKENS = 8  # fewer show little of a canvas


@dataclass(frozen=True)
class Step:
    """A canvas after one denoising step.

    Args:
        tokens: text of each position's most likely token, up to the answer's end of turn, this included.
        entropies: nats, of each position.
    """

    tokens: tuple[str, ...]
    entropies: tuple[float, ...]


@dataclass(frozen=True)
class Canvas:
    """The first canvas of an answer, while it is denoised.

    Args:
        prompt: the question.
        length: tokens of the whole canvas.
        steps: in order; the tokens of the last are committed.
    """

    prompt: str
    length: int
    steps: tuple[Step, ...]


def to_be_traced(right: Sequence[bool], answers: Sequence[Answer]) -> int:
    """Index of the answer worth looking at: right, of one canvas, of the most steps that a picture has room for."""

    def merits(index: int) -> tuple[bool, bool, bool, int]:
        answer = answers[index]
        fits = len(answer.steps) == 1 and answer.steps[0] <= _MOST_STEPS
        return fits, right[index], answer.tokens >= _FEWEST_TOKENS, answer.steps[0] if fits else 0

    return max(range(len(answers)), key=merits)


def trace(engine: Path, messages: Sequence[Message], max_tokens: int, seed: int) -> Canvas:
    """Answer in this process, from the bundle that is served: the same tokens, and every step's entropies.

    Args:
        engine: the bundle.
        messages: the conversation.
        max_tokens: as in the request to be traced.
        seed: as there.

    Raises:
        FieldError: when the bundle cannot run here.
    """
    spec = Bundle.open(engine).spec
    watched = _Watched(load_backend(spec))
    running = Engine(spec, cast("Backend", watched))
    assert running.tokenizer is not None, "the demo's engine has a tokenizer"
    try:
        ids = running.tokenizer.chat(messages)
        (generation,) = running.generate([ids], max_tokens=max_tokens, seed=seed)
    finally:
        running.close()
    first = watched.seen[: generation.denoising_steps[0]]  # of the first canvas
    ends = spec.arch.eos_token_ids
    answer = first[-1].argmax_ids.tolist()
    length = next((i + 1 for i, token in enumerate(answer) if token in ends), len(answer))
    decode = running.tokenizer.decode
    steps = tuple(
        Step(
            tuple(decode([token], skip_special_tokens=False) for token in seen.argmax_ids[:length].tolist()),
            tuple(seen.entropy[:length].tolist()),
        )
        for seen in first
    )
    return Canvas(str(messages[-1]["content"]), len(answer), steps)


class _Watched:
    """A backend that keeps what each denoising step reads out."""

    def __init__(self, backend: Backend):
        self._backend = backend
        self.seen: list[ReadOut] = []

    def denoise(self, steps: Sequence[CanvasStep]) -> list[ReadOut | Exception]:
        found = self._backend.denoise(steps)
        self.seen += [result for result in found if isinstance(result, ReadOut)]
        return found

    def __getattr__(self, name: str) -> object:
        return getattr(self._backend, name)
