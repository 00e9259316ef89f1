"""What a caller asks of the engine, and what it gets back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from nemo_diffgemma.errors import require

FinishReason = Literal["stop", "length", "cancelled", "error"]
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class SamplerConfig:
    """How a canvas is denoised; the defaults are the released ``generation_config.json``'s.

    Args:
        max_denoising_steps: cap of steps a canvas; also sets the temperature schedule.
        t_min, t_max: temperature runs linearly from ``t_max`` towards ``t_min``.
        entropy_bound: nats of summed entropy accepted in one step.
        confidence_threshold: mean entropy (nats) below which a stable canvas stops.
        stability_threshold: number of earlier steps whose argmax the current one must equal.

    Raises:
        FieldError: on a value out of range.
    """

    max_denoising_steps: int = 48
    t_min: float = 0.4
    t_max: float = 0.8
    entropy_bound: float = 0.1
    confidence_threshold: float = 0.005
    stability_threshold: int = 1

    def __post_init__(self) -> None:
        _integer("max_denoising_steps", self.max_denoising_steps, 1)
        _integer("stability_threshold", self.stability_threshold, 0)
        for name in ("t_min", "t_max", "entropy_bound", "confidence_threshold"):
            value = getattr(self, name)
            good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
            require(good, name, value, "a finite number >= 0", f"pass {name}={getattr(type(self), name)}")
        require(self.t_min > 0, "t_min", self.t_min, "a number > 0", "pass t_min=0.4")
        require(
            self.t_max >= self.t_min, "t_max", self.t_max, f"at least t_min ({self.t_min})", f"pass t_max={self.t_min}"
        )

    @classmethod
    def from_generation_config(cls, values: Mapping[str, Any]) -> Self:
        """Read what a checkpoint's ``generation_config.json`` sets; the rest keeps the released defaults."""
        known = {f.name: values[f.name] for f in fields(cls) if values.get(f.name) is not None}
        sampler = values.get("sampler_config") or {}
        if sampler.get("entropy_bound") is not None:
            known["entropy_bound"] = sampler["entropy_bound"]
        return cls(**known)


@dataclass(frozen=True)
class Request:
    """One generation.

    Args:
        prompt_ids: token ids of the prompt, at least one.
        max_tokens: most tokens to return; need not be a multiple of the canvas.
        seed: all randomness follows from it; 0 to 2**64 - 1.
        sampler: how canvases are denoised.
        ignore_eos: go on to ``max_tokens`` whatever the model writes.
        drafts: also report the argmax canvas after every denoising step.

    Raises:
        FieldError: on a value out of range. Limits of the engine are checked when it is submitted.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    seed: int = 0
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    ignore_eos: bool = False
    drafts: bool = False

    def __post_init__(self) -> None:
        require(
            len(self.prompt_ids) > 0, "prompt", "no tokens", "at least one token", "send a prompt that is not empty"
        )
        _integer("max_tokens", self.max_tokens, 1)
        _integer("seed", self.seed, 0, MAX_SEED)


@dataclass(frozen=True)
class Draft:
    """The canvas as it stands after one denoising step. Provisional: the next step may change any of it.

    Args:
        canvas_index: which canvas of the request, from 0.
        step: denoising steps done on this canvas, from 1.
        token_ids: the argmax canvas, cut at an end of sequence and at ``max_tokens``.
        text: its text; empty for an engine without a tokenizer.
        entropy: mean entropy of the canvas in nats.
    """

    canvas_index: int
    step: int
    token_ids: tuple[int, ...]
    text: str
    entropy: float


@dataclass(frozen=True)
class Block:
    """A finished canvas: committed, it will not change.

    Args:
        canvas_index: which canvas of the request, from 0.
        token_ids: new tokens, without end-of-sequence token and padding.
        text: new text; concatenated over a request's blocks it is the text of all tokens.
        denoising_steps: steps this canvas took.
        entropies: mean entropy (nats) of the canvas after each step.
        finish_reason: set on the last block of a request, None before.
        error: what went wrong, for finish_reason ``error``.
    """

    canvas_index: int
    token_ids: tuple[int, ...]
    text: str
    denoising_steps: int
    entropies: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None


Event = Draft | Block


def _integer(name: str, value: object, low: int, high: int | None = None) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high)
    allowed = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    require(good, name, value, allowed, f"pass {name}={low}")
