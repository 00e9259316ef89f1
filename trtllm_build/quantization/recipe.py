"""Quantisation recipes: which classes of tensors are quantised, and why the others are not (``conf/precision``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from omegaconf import OmegaConf

from nemo_diffgemma.errors import require

# Class -> how the network's names of its tensors begin; what is in no class is a norm or a scalar.
_STARTS = {
    "experts": ("experts_",),
    "router": ("router_", "per_expert_scale"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "conditioning": ("conditioning_",),
    "embedding": ("embedding",),
}
CLASSES = (*_STARTS, "norms")
FORMATS = {"fp8": "float8_e4m3fn", "nvfp4": "float4_e2m1"}
_DTYPES = ("float32", "bfloat16")
_QUANTIZABLE = ("experts", "attention", "mlp")


def named_recipe(name: str) -> Recipe:
    """One of ``conf/precision`` as it stands."""
    path = Path(__file__).parent.parent / "conf" / "precision" / f"{name}.yaml"
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(config, dict)
    return Recipe.from_config({str(k): v for k, v in config.items()})


def class_of(name: str) -> str:
    """Class of a tensor by the network's name for it."""
    if name.endswith("_norm"):
        return "norms"
    return next((c for c, starts in _STARTS.items() if name.startswith(starts)), "norms")


@dataclass(frozen=True)
class Recipe:
    """What to do with each class of tensors.

    Args:
        name: the precision's name.
        dtype: of what is not quantised.
        format: of what is quantised; None when nothing is.
        quantize: classes to quantise.
        keep: every other class, and the reason why it is not quantised.
        expert_scales: ``channel``: one an output channel, and activations are scaled as they come; ``static``: one an
            expert and matrix, and one for what it reads, found by calibration.

    Raises:
        FieldError: when a class is in neither or in both, has no reason, or the experts are left as they are.
    """

    name: str
    dtype: str
    format: str | None
    quantize: tuple[str, ...]
    keep: Mapping[str, str]
    expert_scales: str = "channel"

    def __post_init__(self) -> None:
        allowed = ", ".join(_DTYPES)
        require(
            self.dtype in _DTYPES,
            field="precision.dtype",
            value=self.dtype,
            allowed=allowed,
            fix="pass precision.dtype=bfloat16",
        )
        scales = ("channel", "static")
        fix = "pass precision.expert_scales=channel"
        require(
            self.expert_scales in scales,
            field="precision.expert_scales",
            value=self.expert_scales,
            allowed=", ".join(scales),
            fix=fix,
        )
        if self.format is None:
            require(
                not self.quantize,
                field="precision.quantize",
                value=list(self.quantize),
                allowed="[] without a format",
                fix="set a format",
            )
            return
        require(
            self.format in FORMATS,
            field="precision.format",
            value=self.format,
            allowed=", ".join(FORMATS),
            fix="pass precision=fp8",
        )
        wrong = sorted(set(self.quantize) - set(_QUANTIZABLE))
        require(
            not wrong,
            field="precision.quantize",
            value=wrong,
            allowed=", ".join(_QUANTIZABLE),
            fix="leave it out of precision.quantize",
        )
        require(
            "experts" in self.quantize,
            field="precision.quantize",
            value=list(self.quantize),
            allowed="a list with experts in it: they are 90 % of the weights",
            fix="add experts, or build with precision=bf16",
        )
        for name in CLASSES:
            reason = self.keep.get(name, "")
            require(
                (name in self.quantize) != bool(reason.strip()),
                field=f"precision.keep.{name}",
                value=reason,
                allowed="a reason for each class that is not in precision.quantize, and for no other",
                fix=f"add {name} to one of precision.quantize and precision.keep",
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read one of ``conf/precision``, overrides applied.

        Raises:
            FieldError: see the class; and where a list or an object is something else.
        """
        kinds = {"quantize": (Sequence, "a list of classes"), "keep": (Mapping, "an object of classes and reasons")}
        for key, (kind, allowed) in kinds.items():
            good = isinstance(config[key], kind) and not isinstance(config[key], str)
            require(good, field=f"precision.{key}", value=config[key], allowed=allowed, fix="leave it out")
        return cls(
            config["name"],
            config["dtype"],
            config["format"],
            tuple(config["quantize"]),
            {str(k): str(v) for k, v in config["keep"].items()},
            config.get("expert_scales", "channel"),
        )

    @property
    def static(self) -> bool:
        """Whether scales of activations have to be found by calibration."""
        return self.format is not None and self.expert_scales == "static"

    @property
    def dtypes(self) -> dict[str, str]:
        """Class -> name of the dtype that its tensors are stored in."""
        return {c: FORMATS[self.format] if self.format and c in self.quantize else self.dtype for c in CLASSES}
