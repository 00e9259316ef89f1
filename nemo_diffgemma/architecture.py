"""The architecture of a DiffusionGemma model: one frozen, validated dataclass <-> Hugging Face config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from nemo_diffgemma.errors import FieldError, require

SLIDING = "sliding_attention"
GLOBAL = "full_attention"

# Values of config.json that every DiffusionGemma has; anything else is another model.
_FIXED_TEXT = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
_REMEDY = "correct config.json, or use a checkpoint of model_type 'diffusion_gemma'"


@dataclass(frozen=True)
class Architecture:
    """Shapes and constants of the text model, exactly what is needed to build it.

    Field names are those of Hugging Face's ``text_config`` where one exists.
    ``vision_config`` is carried through unread: this project trains and serves text.

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
    bos_token_id: int = 2
    eos_token_ids: tuple[int, ...] = (1,)
    vision_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            require(
                isinstance(value, int) and not isinstance(value, bool) and value >= 1,
                f"model.{name}",
                value,
                "an integer >= 1",
                f"set model.{name}",
            )
        self._check(len(self.layer_types) == self.num_hidden_layers, "layer_types", f"{self.num_hidden_layers} entries")
        for kind in self.layer_types:
            require(kind in (SLIDING, GLOBAL), "model.layer_types", kind, f"{SLIDING} or {GLOBAL}", _REMEDY)
        self._check(self.layer_types[-1] == GLOBAL, "layer_types", f"a last entry of {GLOBAL}")
        self._check(self.top_k_experts <= self.num_experts, "top_k_experts", f"at most {self.num_experts}")
        self._check(self.head_dim % 2 == 0, "head_dim", "an even integer")
        self._check(self.global_head_dim % 2 == 0, "global_head_dim", "an even integer")
        for name in ("num_key_value_heads", "num_global_key_value_heads"):
            self._check(
                self.num_attention_heads % getattr(self, name) == 0, name, f"a divisor of {self.num_attention_heads}"
            )
        self._check(0 < self.global_partial_rotary_factor <= 1, "global_partial_rotary_factor", "in (0, 1]")
        for name in ("rms_norm_eps", "final_logit_softcapping", "rope_theta", "global_rope_theta"):
            self._check(getattr(self, name) > 0, name, "a number > 0")
        self._check(self.sliding_window >= 2, "sliding_window", "an integer >= 2")
        self._check(len(self.eos_token_ids) > 0, "eos_token_ids", "at least one token id")
        for name in ("pad_token_id", "bos_token_id"):
            self._check(0 <= getattr(self, name) < self.vocab_size, name, f"0 to {self.vocab_size - 1}")
        self._check(
            all(0 <= i < self.vocab_size for i in self.eos_token_ids), "eos_token_ids", f"0 to {self.vocab_size - 1}"
        )
        self._check(
            self.canvas_length < self.max_position_embeddings,
            "canvas_length",
            f"less than max_position_embeddings {self.max_position_embeddings}",
        )

    def _check(self, condition: bool, name: str, allowed: str) -> None:
        require(condition, f"model.{name}", getattr(self, name), allowed, f"set model.{name}")

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

    # -- config.json -----------------------------------------------------------------

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read the dictionary of a Hugging Face ``config.json``.

        Both spellings of the global layers' shapes are read: ``global_head_dim`` and
        ``num_global_key_value_heads``, and ``per_layer_config`` (transformers >= 5.18).

        Raises:
            FieldError: when the model is not a DiffusionGemma, a field is missing, or a field
                holds a value this project does not compute.
        """
        require(
            config.get("model_type") == "diffusion_gemma",
            "config.json:model_type",
            config.get("model_type"),
            "'diffusion_gemma'",
            "name a DiffusionGemma checkpoint directory",
        )
        text = dict(config.get("text_config") or {})
        for name, value in _FIXED_TEXT.items():
            found = text.get(name, value)
            require(found == value, f"config.json:text_config.{name}", found, repr(value), _REMEDY)
        require(
            text.get("use_bidirectional_attention") in (None, "vision"),
            "config.json:text_config.use_bidirectional_attention",
            text.get("use_bidirectional_attention"),
            "null or 'vision'",
            _REMEDY,
        )
        layers = _required(text, "num_hidden_layers")
        kinds = text.get("layer_types") or [GLOBAL if (i + 1) % 6 == 0 else SLIDING for i in range(layers)]
        kinds = [*kinds[:-1], GLOBAL]  # upstream forces the last layer to global too
        sliding_rope, global_rope = _rope(text)
        global_heads, global_head_dim = _global_shapes(text, kinds)
        eos = text.get("eos_token_id", 1)
        return cls(
            **{name: _required(text, name) for name in _SAME_NAME},
            num_global_key_value_heads=global_heads,
            global_head_dim=global_head_dim,
            layer_types=tuple(kinds),
            canvas_length=config.get("canvas_length", 256),
            rope_theta=float(sliding_rope["rope_theta"]),
            global_rope_theta=float(global_rope["rope_theta"]),
            global_partial_rotary_factor=float(global_rope.get("partial_rotary_factor", 1.0)),
            rms_norm_eps=float(text.get("rms_norm_eps", 1e-6)),
            final_logit_softcapping=float(text.get("final_logit_softcapping", 30.0)),
            initializer_range=float(text.get("initializer_range", 0.02)),
            pad_token_id=text.get("pad_token_id", 0),
            bos_token_id=text.get("bos_token_id", 2),
            eos_token_ids=tuple(eos) if isinstance(eos, list | tuple) else (eos,),
            vision_config=config.get("vision_config"),
        )

    def to_hf(self, dtype: str = "float32") -> dict[str, Any]:
        """The dictionary of ``config.json``, in the spelling every transformers since 5.14 reads."""
        text = {name: getattr(self, name) for name in _SAME_NAME}
        text |= {
            "model_type": "diffusion_gemma_text",
            "dtype": dtype,
            "num_global_key_value_heads": self.num_global_key_value_heads,
            "global_head_dim": self.global_head_dim,
            "layer_types": list(self.layer_types),
            "rope_parameters": {
                SLIDING: {"rope_type": "default", "rope_theta": self.rope_theta},
                GLOBAL: {
                    "rope_type": "proportional",
                    "rope_theta": self.global_rope_theta,
                    "partial_rotary_factor": self.global_partial_rotary_factor,
                },
            },
            "rms_norm_eps": self.rms_norm_eps,
            "final_logit_softcapping": self.final_logit_softcapping,
            "initializer_range": self.initializer_range,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_ids),
            "use_bidirectional_attention": "vision" if self.vision_config else None,
            **_FIXED_TEXT,
        }
        return {
            "architectures": ["DiffusionGemmaForBlockDiffusion"],
            "model_type": "diffusion_gemma",
            "dtype": dtype,
            "canvas_length": self.canvas_length,
            "initializer_range": self.initializer_range,
            "tie_word_embeddings": True,
            "text_config": text,
            "vision_config": self.vision_config,
        }

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read ``directory/config.json``.

        Raises:
            FieldError: when the file is missing, is not JSON, or does not describe a DiffusionGemma.
        """
        path = Path(directory) / "config.json"
        require(
            path.is_file(),
            "checkpoint",
            str(directory),
            "a directory with a config.json",
            "name a Hugging Face-layout checkpoint directory; `make train` writes one",
        )
        try:
            config = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise FieldError(
                "config.json", f"{path}: {error}", "a JSON object", "download or export the checkpoint again"
            ) from None
        return cls.from_hf(config)

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
            require(str(name) in names, f"model.{name}", values[name], ", ".join(sorted(names)), f"remove model.{name}")
        values = dict(values)
        for name in ("layer_types", "eos_token_ids"):
            if name in values:
                values[name] = tuple(values[name])
        missing = [f.name for f in fields(cls) if f.name not in values and f.default is f.default_factory]
        require(not missing, "model", ", ".join(missing), "every field set", f"set model.{(missing or [''])[0]}")
        return cls(**values)


_SAME_NAME = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "num_experts", "top_k_experts", "moe_intermediate_size",
    "sliding_window", "max_position_embeddings",
)  # fmt: skip
_POSITIVE = (*_SAME_NAME, "num_global_key_value_heads", "global_head_dim", "canvas_length")


def _required(text: Mapping[str, Any], name: str) -> Any:
    value = text.get(name)
    require(value is not None, f"config.json:text_config.{name}", value, "a value", _REMEDY)
    return value


def _rope(text: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """RoPE parameters of the sliding and of the global layers; refuses kinds of RoPE not computed here."""
    default = {
        SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
        GLOBAL: {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
    }
    rope = text.get("rope_parameters") or default
    expected = {SLIDING: ({"default"}, {"rope_type", "rope_theta"})}
    expected[GLOBAL] = ({"proportional"}, {"rope_type", "rope_theta", "partial_rotary_factor"})
    for kind, (types, keys) in expected.items():
        field = f"config.json:text_config.rope_parameters.{kind}"
        found = rope.get(kind, default[kind])
        extra = {k: v for k, v in found.items() if k not in keys and v not in (None, 1.0)}
        require(found.get("rope_type") in types and not extra, field, found, f"rope_type {sorted(types)}", _REMEDY)
    return rope.get(SLIDING, default[SLIDING]), rope.get(GLOBAL, default[GLOBAL])


def _global_shapes(text: Mapping[str, Any], kinds: list[str]) -> tuple[int, int]:
    """Key-value heads and head size of the global layers."""
    per_layer = text.get("per_layer_config")
    if not per_layer:
        heads = text.get("num_global_key_value_heads") or _required(text, "num_key_value_heads")
        return heads, text.get("global_head_dim") or 512
    shapes = set()
    for index, override in per_layer.items():
        field = f"config.json:text_config.per_layer_config.{index}"
        known = kinds[int(index)] == GLOBAL and not set(override) - {"head_dim", "num_key_value_heads"}
        require(known, field, override, "head_dim and num_key_value_heads of global layers", _REMEDY)
        heads = override.get("num_key_value_heads") or _required(text, "num_key_value_heads")
        shapes.add((heads, override.get("head_dim") or _required(text, "head_dim")))
    field = "config.json:text_config.per_layer_config"
    require(len(shapes) == 1 and len(per_layer) == kinds.count(GLOBAL), field, per_layer, "one shape for all", _REMEDY)
    return shapes.pop()
