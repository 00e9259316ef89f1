"""The architecture of a DiffusionGemma model: one frozen, validated dataclass <-> Hugging Face config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from nemo_diffgemma.errors import require

SLIDING = "sliding_attention"
GLOBAL = "full_attention"

MOST = 2**31 - 1  # of what is counted: more is no model's, and kernels count in 32 bits
MOST_LAYERS, MOST_TOKENS = 1024, 2**24  # of the vocabulary, which tables and tokenizers are made for

CORRECT = "correct config.json, or use a checkpoint of model_type 'diffusion_gemma'"


@dataclass(frozen=True)
class Architecture:
    """Shapes and constants of the text model, exactly what is needed to build it.

    Field names are those of Hugging Face's ``text_config`` where one exists.
    ``vision_config`` is carried through unread: this project trains and serves text.
    ``eos_token_ids`` may be empty: then nothing but its length ends an answer.

    Raises:
        FieldError: when a value is out of range or two values contradict each other.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_global_key_value_heads: int
    global_head_dim: int
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    sliding_window: int
    layer_types: tuple[str, ...]
    canvas_length: int
    max_position_embeddings: int
    rope_theta: float = 10_000.0
    global_rope_theta: float = 1_000_000.0
    global_partial_rotary_factor: float = 0.25
    rms_norm_eps: float = 1e-6
    final_logit_softcapping: float = 30.0
    initializer_range: float = 0.02
    pad_token_id: int = 0
    bos_token_id: int | None = 2
    eos_token_ids: tuple[int, ...] = (1,)
    vision_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            most = {"num_hidden_layers": MOST_LAYERS, "vocab_size": MOST_TOKENS}.get(name, MOST)
            value = getattr(self, name)
            self._check(_is_integer(value, 1) and value <= most, name, f"an integer >= 1, at most {most}")
        for name in ("layer_types", "eos_token_ids"):
            self._check(isinstance(getattr(self, name), tuple), name, "a list")
        self._check(isinstance(self.vision_config, dict | None), "vision_config", "an object of names and values")
        self._check(len(self.layer_types) == self.num_hidden_layers, "layer_types", f"{self.num_hidden_layers} entries")
        for kind in self.layer_types:
            require(
                kind in (SLIDING, GLOBAL),
                field="model.layer_types",
                value=kind,
                allowed=f"{SLIDING} or {GLOBAL}",
                fix=CORRECT,
            )
        self._check(self.layer_types[-1] == GLOBAL, "layer_types", f"a last entry of {GLOBAL}")
        self._check(self.top_k_experts <= self.num_experts, "top_k_experts", f"at most {self.num_experts}")
        self._check(self.head_dim % 2 == 0, "head_dim", "an even integer")
        self._check(self.global_head_dim % 2 == 0, "global_head_dim", "an even integer")
        for name in ("num_key_value_heads", "num_global_key_value_heads"):
            self._check(
                self.num_attention_heads % getattr(self, name) == 0, name, f"a divisor of {self.num_attention_heads}"
            )
        for name in ("rms_norm_eps", "final_logit_softcapping", "rope_theta", "global_rope_theta"):
            self._check(_is_number(getattr(self, name)) and getattr(self, name) > 0, name, "a number > 0")
        share = self.global_partial_rotary_factor
        self._check(_is_number(share) and 0 < share <= 1, "global_partial_rotary_factor", "in (0, 1]")
        self._check(_is_number(self.initializer_range), "initializer_range", "a number")
        self._check(self.initializer_range >= 0, "initializer_range", "a number >= 0")
        self._check(self.sliding_window >= 2, "sliding_window", "an integer >= 2")
        allowed = f"0 to {self.vocab_size - 1}"
        self._check(self._is_token(self.pad_token_id), "pad_token_id", allowed)
        self._check(self.bos_token_id is None or self._is_token(self.bos_token_id), "bos_token_id", allowed)
        self._check(all(self._is_token(i) for i in self.eos_token_ids), "eos_token_ids", allowed)
        self._check(
            self.canvas_length < self.max_position_embeddings,
            "canvas_length",
            f"less than max_position_embeddings {self.max_position_embeddings}",
        )

    def _is_token(self, value: object) -> bool:
        return _is_integer(value, 0) and value < self.vocab_size  # type: ignore[operator]

    def _check(self, condition: bool, name: str, allowed: str) -> None:
        require(condition, field=f"model.{name}", value=getattr(self, name), allowed=allowed, fix=f"set model.{name}")

    # -- what follows from the fields ------------------------------------------------

    def is_global(self, layer: int) -> bool:
        """Whether layer ``layer`` attends to the whole context."""
        return self.layer_types[layer] == GLOBAL

    def head_size(self, layer: int) -> int:
        """Width of one attention head of ``layer``."""
        return self.global_head_dim if self.is_global(layer) else self.head_dim

    def kv_heads(self, layer: int) -> int:
        """Number of key-value heads of ``layer``."""
        return self.num_global_key_value_heads if self.is_global(layer) else self.num_key_value_heads

    @property
    def embed_scale(self) -> float:
        """Factor on every embedding read: sqrt(hidden_size)."""
        return math.sqrt(self.hidden_size)

    def with_changes(self, **changes: Any) -> Self:
        """A validated copy with some fields replaced."""
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary of every field (JSON-ready)."""
        return asdict(self) | {"layer_types": list(self.layer_types), "eos_token_ids": list(self.eos_token_ids)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`as_dict`; also what a Hydra ``model`` group becomes.

        Raises:
            FieldError: on an unknown or a missing field.
        """
        names = {f.name for f in fields(cls)}
        for name in values:
            require(
                str(name) in names,
                field=f"model.{name}",
                value=values[name],
                allowed=", ".join(sorted(names)),
                fix=f"remove model.{name}",
            )
        values = dict(values)
        for name in ("layer_types", "eos_token_ids"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        missing = [f.name for f in fields(cls) if f.name not in values and f.default is f.default_factory]
        require(
            not missing,
            field="model",
            value=", ".join(missing),
            allowed="every field set",
            fix=f"set model.{(missing or [''])[0]}",
        )
        return cls(**values)


SAME_NAME = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "num_experts", "top_k_experts", "moe_intermediate_size",
    "sliding_window", "max_position_embeddings",
)  # fmt: skip
_POSITIVE = (*SAME_NAME, "num_global_key_value_heads", "global_head_dim", "canvas_length")


def _is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
