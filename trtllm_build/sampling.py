"""The sampler's settings: what a request may change of how `nemo_diffgemma.diffusion` denoises its canvases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from nemo_diffgemma.errors import require, require_integer

_SAMPLER = "EntropyBoundSamplerConfig"  # transformers' name of the one sampler there is
LEAST_TEMPERATURE = 1e-6  # the soft-cap divided by less is no float32 to compute with


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, apart from everything that decides: entropies, acceptance, stopping, soft embeddings.

    Args:
        temperature: times the schedule's, 0 to 2; 1 is the checkpoint's own, 0 draws the likeliest token.
        top_p: 0 to 1; only the smallest set of likeliest tokens that weighs as much, at the temperature that is
            sampled at, is drawn from. The likeliest token always is; of those with equal logits lower ids go first.

    Raises:
        FieldError: on a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, most in (("temperature", 2), ("top_p", 1)):
            value = getattr(self, name)
            good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
            require(good, field=name, value=value, allowed=f"a number from 0 to {most}", fix=f"pass {name}=1")

    @property
    def plain(self) -> bool:
        """Whether what the step's own distribution gives is what is wanted."""
        return self.temperature == 1 and self.top_p == 1

    def certain(self, step: float) -> bool:
        """Whether the likeliest token is the only one, at the temperature of this step.

        Float32 logits that differ at all differ by more than the least temperature.
        """
        return self.top_p == 0 or self.temperature * step < LEAST_TEMPERATURE


PLAIN = Sampling()


@dataclass(frozen=True)
class SamplerConfig:
    """How a canvas is denoised; the defaults are the released ``generation_config.json``'s.

    Args:
        max_denoising_steps: cap of steps per canvas; also sets the temperature schedule.
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
        require_integer("max_denoising_steps", self.max_denoising_steps, 1)
        require_integer("stability_threshold", self.stability_threshold, 0)
        for name in ("t_min", "t_max", "entropy_bound", "confidence_threshold"):
            value = getattr(self, name)
            good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
            require(
                good,
                field=name,
                value=value,
                allowed="a finite number >= 0",
                fix=f"pass {name}={getattr(type(self), name)}",
            )
        require(
            self.t_min >= LEAST_TEMPERATURE,
            field="t_min",
            value=self.t_min,
            allowed=f"a number >= {LEAST_TEMPERATURE}",
            fix="pass t_min=0.4",
        )
        require(
            self.t_max >= self.t_min,
            field="t_max",
            value=self.t_max,
            allowed=f"at least t_min ({self.t_min})",
            fix=f"pass t_max={self.t_min}",
        )

    @classmethod
    def from_generation_config(cls, values: Mapping[str, Any]) -> Self:
        """Read what a checkpoint's ``generation_config.json`` sets; the rest keeps the released defaults.

        Raises:
            FieldError: on a value out of range, or of another kind; when the checkpoint asks for another sampler.
        """
        known = {f.name: values[f.name] for f in fields(cls) if values.get(f.name) is not None}
        sampler = values.get("sampler_config")
        sampler = {} if sampler is None else sampler
        # of another sampler its settings would be passed over, and this one would run in its place
        good = isinstance(sampler, dict) and sampler.keys() <= {"_cls_name", "entropy_bound"}
        require(
            good and sampler.get("_cls_name") in (None, _SAMPLER),
            field="sampler_config",
            value=sampler,
            allowed=f"an object with entropy_bound, and _cls_name {_SAMPLER}",
            fix="remove it",
        )
        if sampler.get("entropy_bound") is not None:
            known["entropy_bound"] = sampler["entropy_bound"]
        return cls(**known)
