"""What a request has used: tokens, and the denoising steps of its canvases with their entropies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pydantic import BaseModel

from triton_repo.client.wire import Response


class PromptTokensDetails(BaseModel):
    """Of ``prompt_tokens``: those found in the cache of an earlier request; of kinds that there are not, 0."""

    cached_tokens: int
    audio_tokens: int


class CompletionTokensDetails(BaseModel):
    """Of ``completion_tokens``; tokens of kinds that this model does not write are 0."""

    text_tokens: int
    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class CanvasUsage(BaseModel):
    """A canvas of an answer. Entropies are means over the canvas, in nats, after a denoising step.

    ``form_log_probability``, there for an answer of a guaranteed form, is how much the model keeps to it by itself.
    """

    denoising_steps: int
    first_entropy: float
    peak_entropy: float
    summed_entropy: float
    last_entropy: float
    form_log_probability: float | None = None


class ChoiceUsage(BaseModel):
    """The canvases of a choice, in order."""

    index: int
    canvases: list[CanvasUsage]


class DiffusionUsage(BaseModel):
    """What OpenAI's API has no name for."""

    choices: list[ChoiceUsage]


class Usage(BaseModel):
    """Tokens of a request; each prompt counts once, whatever ``n``."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    diffgemma: DiffusionUsage


@dataclass
class Counter:
    """What the responses to one request tell.

    Args:
        choices: answers to each prompt.
        max_tokens: most tokens that the request's last answer could get; None before its first response.
    """

    choices: int
    max_tokens: int | None = None
    _prompts: dict[int, int] = field(default_factory=dict)
    _cached: dict[int, int] = field(default_factory=dict)
    _answers: dict[int, int] = field(default_factory=dict)
    _shown: dict[int, int] = field(default_factory=dict)
    _canvases: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, index: int, response: Response) -> None:
        """Count a response to choice ``index``."""
        self.max_tokens = response.max_tokens
        prompt = index // self.choices
        self._prompts[prompt] = response.num_input_tokens or 0
        self._shown[index] = len(response.token_ids) if response.provisional else 0
        if response.provisional:
            return
        if response.num_cached_tokens is not None:
            # A prompt that is asked for several times counts once: by the choice for which least of it was there.
            found = response.num_cached_tokens
            self._cached[prompt] = min(found, self._cached.get(prompt, found))
        self._answers[index] = response.num_output_tokens or 0
        self._canvases.setdefault(index, []).extend(_canvases(response))

    def tokens(self) -> dict[str, int]:
        """What has been used so far."""
        prompt, answer = sum(self._prompts.values()), sum(self._answers.values())
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def owed(self) -> int:
        """Tokens that a key has used, those of a draft included that no block has followed: they were shown."""
        return self.tokens()["total_tokens"] + sum(self._shown.values())

    def cached(self) -> int:
        """Tokens of the prompts that did not have to be encoded."""
        return sum(self._cached.values())

    def usage(self) -> dict[str, Any]:
        """The JSON of :class:`Usage`."""
        tokens = self.tokens()
        prompt = dict.fromkeys(PromptTokensDetails.model_fields, 0) | {"cached_tokens": self.cached()}
        details = dict.fromkeys(CompletionTokensDetails.model_fields, 0)
        details["text_tokens"] = tokens["completion_tokens"]
        return {
            **tokens,
            "prompt_tokens_details": prompt,
            "completion_tokens_details": details,
            "diffgemma": self.diffusion(),
        }

    def diffusion(self) -> dict[str, Any]:
        """The JSON of :class:`DiffusionUsage`."""
        return {"choices": [{"index": i, "canvases": canvases} for i, canvases in sorted(self._canvases.items())]}


def _canvases(response: Response) -> Iterator[dict[str, Any]]:
    entropies, forms = iter(response.step_entropies), iter(response.form_log_probability)
    for steps in response.canvas_steps:
        mine = list(islice(entropies, steps))
        form = next(forms, None)
        yield {
            "denoising_steps": steps,
            "first_entropy": _short(mine[0]),
            "peak_entropy": _short(max(mine)),
            "summed_entropy": _short(sum(mine)),
            "last_entropy": _short(mine[-1]),
            **({} if form is None else {"form_log_probability": _short(form)}),
        }


def _short(nats: float) -> float:
    """As many digits as a float32 has."""
    return float(f"{nats:.7g}")
