"""Hugging Face's ``config.json`` as an architecture, and back. transformers itself says what a config means."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from nemo_diffgemma.architecture import CORRECT, GLOBAL, MOST_LAYERS, SAME_NAME, SLIDING, Architecture
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.json_files import read_object

_TEXT = "config.json:text_config"
# Of text_config: what every DiffusionGemma has; anything else is another model.
_FIXED = {
    "attention_bias": (False,),
    "attention_dropout": (0.0, None),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "use_bidirectional_attention": (None, "vision"),
}
_PER_LAYER = {"head_dim", "num_key_value_heads"}
_Made = TypeVar("_Made")


def load_architecture(directory: str | Path) -> Architecture:
    """The architecture of ``directory/config.json``.

    Raises:
        FieldError: when the file is missing, is not a JSON object, or does not describe a DiffusionGemma.
    """
    path = Path(directory) / "config.json"
    require(
        os.path.lexists(path),
        field="checkpoint",
        value=str(directory),
        allowed="a directory with a config.json",
        fix="name a Hugging Face-layout checkpoint directory; `make train` writes one",
    )
    config = read_object(path, "config.json", "download or export the checkpoint again")
    return read_config(config)


def read_config(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a ``config.json``, with transformers' defaults for what it does not say.

    Shapes of the global layers may be spelled ``global_head_dim`` and ``num_global_key_value_heads``, or
    ``per_layer_config`` (transformers >= 5.18). Ids of special tokens are those of the outer config, where it has any,
    before those of ``text_config`` (transformers' ``GenerationConfig.from_model_config``). Padding is never read: where
    a config names no token for it, it is an end of sequence.

    Raises:
        FieldError: when the model is not a DiffusionGemma, transformers does not take the config, or a field holds a
            value that this project does not compute.
    """
    found = config.get("model_type")
    fix = "name a DiffusionGemma checkpoint directory"
    require(
        found == "diffusion_gemma", field="config.json:model_type", value=found, allowed="'diffusion_gemma'", fix=fix
    )
    given = copy.deepcopy(dict(config))  # transformers writes into what it is given
    stated = given.pop("text_config", None) or {}
    vision = given.pop("vision_config", None)
    for name, value in (("text_config", stated), ("vision_config", vision)):
        good = isinstance(value, dict) or value is None
        require(good, field=f"config.json:{name}", value=value, allowed="an object of names and values", fix=CORRECT)
    # transformers takes it for rope_parameters, and null for no RoPE at all
    allowed = "rope_parameters in its place"
    require(
        "rope_scaling" not in stated,
        field=f"{_TEXT}.rope_scaling",
        value=stated.get("rope_scaling"),
        allowed=allowed,
        fix=CORRECT,
    )
    _check_rope_types(stated.get("rope_parameters"))
    layers = stated.get("num_hidden_layers")
    require(  # transformers makes as many objects as it is told
        not isinstance(layers, int) or layers <= MOST_LAYERS,
        field=f"{_TEXT}.num_hidden_layers",
        value=layers,
        allowed=f"an integer >= 1, at most {MOST_LAYERS}",
        fix=CORRECT,
    )

    from transformers import DiffusionGemmaConfig, DiffusionGemmaTextConfig  # takes seconds

    text: Any = _accepted(_TEXT, stated, lambda: DiffusionGemmaTextConfig(**stated))
    whole: Any = _accepted("config.json", given, lambda: DiffusionGemmaConfig(**given, text_config=text))
    shapes = _layer_shapes(text)
    allowed = "true: encoder, decoder and output projection share their weights"
    require(
        whole.tie_word_embeddings is True,
        field="config.json:tie_word_embeddings",
        value=False,
        allowed=allowed,
        fix=CORRECT,
    )
    for name, values in _FIXED.items():
        value = getattr(text, name)
        require(
            value in values, field=f"{_TEXT}.{name}", value=value, allowed=" or ".join(map(repr, values)), fix=CORRECT
        )
    ids = {name: _token_id(whole, text, name) for name in ("pad", "bos", "eos")}
    ends = tuple(ids["eos"]) if isinstance(ids["eos"], list | tuple) else () if ids["eos"] is None else (ids["eos"],)
    pad = ids["pad"] if ids["pad"] is not None else ends[0] if ends else 0
    fields = {name: getattr(text, name) for name in SAME_NAME if name not in _PER_LAYER}
    fields |= shapes | _rope(text)
    for name in ("rms_norm_eps", "final_logit_softcapping", "initializer_range"):
        fields[name] = getattr(text, name)
    try:
        return Architecture(
            **fields,
            layer_types=tuple(text.layer_types),
            canvas_length=whole.canvas_length,
            pad_token_id=pad,
            bos_token_id=ids["bos"],
            eos_token_ids=ends,
            vision_config=vision,
        )
    except FieldError as error:
        name = error.field.removeprefix("model.")
        where = "config.json:" if name == "canvas_length" else f"{_TEXT}."
        raise FieldError(field=where + name, value=error.value, allowed=error.allowed, fix=CORRECT) from None


def write_config(arch: Architecture, dtype: str = "float32") -> dict[str, Any]:
    """The dictionary of ``config.json``, in the spelling that every transformers since 5.14 reads.

    Args:
        arch: what it describes.
        dtype: of the weights, as torch calls it.
    """
    text = {name: getattr(arch, name) for name in SAME_NAME}
    text |= {
        "model_type": "diffusion_gemma_text",
        "dtype": dtype,
        "num_global_key_value_heads": arch.num_global_key_value_heads,
        "global_head_dim": arch.global_head_dim,
        "layer_types": list(arch.layer_types),
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": arch.rope_theta},
            GLOBAL: {
                "rope_type": "proportional",
                "rope_theta": arch.global_rope_theta,
                "partial_rotary_factor": arch.global_partial_rotary_factor,
            },
        },
        "rms_norm_eps": arch.rms_norm_eps,
        "final_logit_softcapping": arch.final_logit_softcapping,
        "initializer_range": arch.initializer_range,
        "pad_token_id": arch.pad_token_id,
        "bos_token_id": arch.bos_token_id,
        "eos_token_id": list(arch.eos_token_ids) or None,
        "use_bidirectional_attention": "vision" if arch.vision_config else None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    }
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "model_type": "diffusion_gemma",
        "dtype": dtype,
        "canvas_length": arch.canvas_length,
        "initializer_range": arch.initializer_range,
        "tie_word_embeddings": True,
        "text_config": text,
        "vision_config": arch.vision_config,
    }


def _accepted(where: str, given: Mapping[str, Any], make: Callable[[], _Made]) -> _Made:
    """What transformers makes of a part of the config.

    Raises:
        FieldError: naming the field, where transformers does, when it makes nothing of it.
    """
    try:
        return make()
    except Exception as error:  # of whatever kind: the config is a user's, and transformers checks it in many places
        text = " ".join(str(error).split())
        named = re.search(r"[Ff]ield '(\w+)'", text)
        name = named[1] if named is not None and named[1] in given else None
        field = where if name is None else f"{where}{'.' if ':' in where else ':'}{name}"
        value = given[name] if name is not None else f"{type(error).__name__}: {text}"
        allowed = f"what transformers takes: {text}" if name is not None else "what transformers takes"
        raise FieldError(field=field, value=value, allowed=allowed, fix=CORRECT) from None


def _token_id(whole: Any, text: Any, name: str) -> Any:
    """A special token's id (of ``eos`` perhaps a list of them); None when the config has none."""
    field = f"{name}_token_id"
    outer = getattr(whole, field, None)
    found = getattr(text, field) if outer is None else outer
    ids = found if isinstance(found, list | tuple) and name == "eos" else [] if found is None else [found]
    good = all(isinstance(i, int) and not isinstance(i, bool) for i in ids)
    where = _TEXT + "." if outer is None else "config.json:"
    require(good, field=f"{where}{field}", value=found, allowed="a token id, or null", fix=CORRECT)
    return found


def _layer_shapes(text: Any) -> dict[str, int]:
    """Head sizes and key-value heads of both kinds of layer."""
    field = f"{_TEXT}.per_layer_config"
    unknown = sorted((text.per_layer_attributes or set()) - _PER_LAYER)
    require(not unknown, field=field, value=", ".join(unknown), allowed="head_dim and num_key_value_heads", fix=CORRECT)
    layers: dict[str, set[tuple[int, int]]] = {SLIDING: set(), GLOBAL: set()}
    for index, kind in enumerate(text.layer_types):
        require(kind in layers, field=f"{_TEXT}.layer_types", value=kind, allowed=f"{SLIDING} or {GLOBAL}", fix=CORRECT)
        layer = text.per_layer_config[index]
        skipped = getattr(layer, "skip", None)
        require(
            not skipped, field=f"{field}.{index}.skip", value=skipped, allowed="nothing that is left out", fix=CORRECT
        )
        layers[kind].add((layer.num_key_value_heads, layer.head_dim))
    for kind, found in layers.items():
        shown = " and ".join(f"{heads} x {size}" for heads, size in sorted(found, key=str))
        require(
            len(found) <= 1,
            field=field,
            value=shown,
            allowed=f"one shape for all {kind} layers (key-value heads x head_dim)",
            fix=CORRECT,
        )
    if not layers[SLIDING]:  # the config's own are then those of no layer
        text.allow_global_per_layer_attribute_access = True
        layers[SLIDING].add((text.num_key_value_heads, text.head_dim))
    (heads, size), (global_heads, global_size) = layers[SLIDING].pop(), layers[GLOBAL].pop()
    return {
        "num_key_value_heads": heads,
        "head_dim": size,
        "num_global_key_value_heads": global_heads,
        "global_head_dim": global_size,
    }


def _check_rope_types(given: Any) -> None:
    """Refuse kinds of RoPE that are not computed here, each of which transformers asks other parameters of."""
    for kind in (SLIDING, GLOBAL):
        found = given.get(kind) if isinstance(given, dict) else None
        named = found.get("rope_type", found.get("type", "default")) if isinstance(found, dict) else "default"
        field = f"{_TEXT}.rope_parameters.{kind}.rope_type"
        require(
            named in ("default", "proportional"),
            field=field,
            value=named,
            allowed="default or proportional",
            fix=CORRECT,
        )


def _rope(text: Any) -> dict[str, float]:
    """Bases of both kinds of layer, and how much of a head turns in global ones."""
    # transformers puts it where rope_parameters says nothing of a kind of layer
    shared = getattr(text, "partial_rotary_factor", None)
    require(
        shared is None,
        field=f"{_TEXT}.partial_rotary_factor",
        value=shared,
        allowed="one in rope_parameters alone",
        fix=CORRECT,
    )
    given = text.rope_parameters
    sliding = _rope_of(given, SLIDING) if SLIDING in text.layer_types else {}
    turning = _rope_of(given, GLOBAL)
    return {
        "rope_theta": sliding.get("rope_theta", 10_000.0),
        "global_rope_theta": turning["rope_theta"],
        "global_partial_rotary_factor": turning.get("partial_rotary_factor", 1.0),
    }


def _rope_of(given: Any, kind: str) -> dict[str, Any]:
    """Parameters of one kind of layer.

    ``proportional`` with all of the head turning is ``default``; so is ``default`` with a factor of 1.

    Raises:
        FieldError: when they are missing, or another kind of RoPE.
    """
    field = f"{_TEXT}.rope_parameters.{kind}"
    found = given.get(kind) if isinstance(given, dict) else None
    require(
        isinstance(found, dict),
        field=field,
        value=found,
        allowed="an object with rope_type and rope_theta",
        fix=CORRECT,
    )
    assert isinstance(found, dict)
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    extra = {k: v for k, v in found.items() if k not in known and v != 1.0}
    share = found.get("partial_rotary_factor", 1.0)
    partial = kind == GLOBAL and found.get("rope_type") == "proportional"
    types = ("default", "proportional") if share == 1.0 or kind == SLIDING else ("proportional",)
    good = found.get("rope_type") in types and not extra and (partial or share == 1.0) and _is_number(share)
    allowed = "rope_type default" + (", or proportional with partial_rotary_factor" if kind == GLOBAL else "")
    require(
        good and _is_number(found.get("rope_theta")),
        field=field,
        value=found,
        allowed=f"{allowed}; and rope_theta",
        fix=CORRECT,
    )
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
