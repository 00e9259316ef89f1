"""Hugging Face-layout checkpoints: strict to open, streamed tensor by tensor."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.files import file_sha256, some
from nemo_diffgemma.hf_config import load_architecture, write_config
from nemo_diffgemma.json_files import read_object
from nemo_diffgemma.tokenizer_names import TOKENIZER_FILES as TOKENIZER_FILES
from nemo_diffgemma.tokenizer_names import tokenizer_files
from nemo_diffgemma.weight_files import INDEX as INDEX
from nemo_diffgemma.weight_files import REFETCH, Shape, Stored, find_weights

if TYPE_CHECKING:
    import torch  # what only asks for names and shapes, as a server does, starts ten times faster without it

DECODER = "model.decoder."
ENCODER = "model.encoder.language_model."
ENCODER_SCALAR = ENCODER + "layers.{}.layer_scalar"
VISION_PREFIXES = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")
# Conversations that travel with a checkpoint: those kept from training, to measure quality on; and some that it was
# trained on, to find scales of activations with.
HELD_OUT, CALIBRATION = "held_out.jsonl", "calibration.jsonl"
_READ = ("F64", "F32", "F16", "BF16")  # dtypes that weights of the text model may be stored in
_COUNTS = ("I64", "I32", "I16", "I8", "U8", "BOOL")  # and what a vision tower may hold beside weights
# What float32 and bfloat16 both hold: beyond it a float64 becomes infinite in the one, a float32 in the other.
_LARGEST = (2 - 2**-7) * 2.0**127  # torch.finfo(torch.bfloat16).max


def layer_tensors(arch: Architecture, layer: int) -> dict[str, Shape]:
    """Names (below ``model.decoder.layers.{layer}.``) and shapes of one layer's tensors."""
    hidden, heads, kv, size = arch.hidden_size, arch.num_attention_heads, arch.kv_heads(layer), arch.head_size(layer)
    experts, inner = arch.num_experts, arch.moe_intermediate_size
    shapes: dict[str, Shape] = {
        "self_attn.q_proj.weight": (heads * size, hidden),
        "self_attn.k_proj.weight": (kv * size, hidden),
        "self_attn.o_proj.weight": (hidden, heads * size),
        "self_attn.q_norm.weight": (size,),
        "self_attn.k_norm.weight": (size,),
        "mlp.gate_proj.weight": (arch.intermediate_size, hidden),
        "mlp.up_proj.weight": (arch.intermediate_size, hidden),
        "mlp.down_proj.weight": (hidden, arch.intermediate_size),
        "router.proj.weight": (experts, hidden),
        "router.scale": (hidden,),
        "router.per_expert_scale": (experts,),
        "experts.gate_up_proj": (experts, 2 * inner, hidden),
        "experts.down_proj": (experts, hidden, inner),
        "layer_scalar": (1,),
    }
    if not arch.is_global(layer):  # a global layer's value is its un-normed key projection
        shapes["self_attn.v_proj.weight"] = (kv * size, hidden)
    for norm in (
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "pre_feedforward_layernorm_2",
        "post_feedforward_layernorm", "post_feedforward_layernorm_1", "post_feedforward_layernorm_2",
    ):  # fmt: skip
        shapes[f"{norm}.weight"] = (hidden,)
    return shapes


def text_tensors(arch: Architecture) -> dict[str, Shape]:
    """Names and shapes of every tensor of the text model, the encoder's own scalars included."""
    hidden, inner = arch.hidden_size, arch.intermediate_size
    shapes: dict[str, Shape] = {
        f"{DECODER}embed_tokens.weight": (arch.vocab_size, hidden),
        f"{DECODER}norm.weight": (hidden,),
        f"{DECODER}self_conditioning.pre_norm.weight": (hidden,),
        f"{DECODER}self_conditioning.gate_proj.weight": (inner, hidden),
        f"{DECODER}self_conditioning.up_proj.weight": (inner, hidden),
        f"{DECODER}self_conditioning.down_proj.weight": (hidden, inner),
    }
    for layer in range(arch.num_hidden_layers):
        shapes |= {f"{DECODER}layers.{layer}.{name}": shape for name, shape in layer_tensors(arch, layer).items()}
        shapes[ENCODER_SCALAR.format(layer)] = (1,)
    return shapes


def tied_names(arch: Architecture) -> dict[str, str]:
    """Other names of the text model's tensors: those that transformers ties to them, and may save beside them."""
    tied = {"lm_head.weight": f"{DECODER}embed_tokens.weight"}
    for name in text_tensors(arch):
        own = name.removeprefix(DECODER)
        if name.startswith(DECODER) and not own.startswith("self_conditioning.") and not own.endswith("layer_scalar"):
            tied[ENCODER + own] = name
    return tied


def vision_tensors(arch: Architecture) -> dict[str, Shape]:
    """Names and shapes of the vision tower and its projection, as transformers builds them (on the meta device)."""
    if arch.vision_config is None:
        return {}
    return {name: tuple(t.shape) for name, t in _vision_modules(arch, "meta").items()}


def new_vision_tensors(arch: Architecture, seed: int) -> dict[str, torch.Tensor]:
    """Freshly initialised vision tensors: a model trained from nothing still needs them to load in transformers."""
    if arch.vision_config is None:
        return {}
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _vision_modules(arch, "cpu")


def _vision_modules(arch: Architecture, device: str) -> dict[str, torch.Tensor]:
    # transformers is only needed here, and takes seconds to import
    import torch
    from transformers import AutoModel, DiffusionGemmaConfig
    from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaMultimodalEmbedder

    try:
        config = DiffusionGemmaConfig(**write_config(arch))
        with torch.device(device):
            parts = {
                VISION_PREFIXES[0]: AutoModel.from_config(config.vision_config),
                VISION_PREFIXES[1]: DiffusionGemmaMultimodalEmbedder(config.vision_config, config.text_config),
            }
    except Exception as error:  # of whatever kind: the config is a user's, and transformers checks it in many places
        found, fix = f"{type(error).__name__}: {' '.join(str(error).split())}", "correct config.json"
        raise FieldError(
            field="config.json:vision_config", value=found, allowed="a tower that transformers builds", fix=fix
        ) from None
    return {prefix + name: t for prefix, module in parts.items() for name, t in module.state_dict().items()}


class Checkpoint:
    """A checkpoint directory whose names, shapes and file lengths have been checked before any weight is read.

    A tensor that is saved a second time under a name that transformers ties to it is read once; both are compared.

    Attributes:
        passed_over: names of tensors that lie in its files and that its index does not have there: not read.

    Raises:
        FieldError: when a file is missing, unreadable or truncated, the index is broken, a tensor missing, extra or of
            the wrong shape, one that is saved twice is not the same twice, or the weights are quantised.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.arch = load_architecture(self.directory)
        quantised = read_object(self.directory / "config.json", "config.json", REFETCH).get("quantization_config")
        fix = "name the checkpoint that it was made from"
        require(
            quantised is None,
            field="config.json:quantization_config",
            value=quantised,
            allowed="none: weights as trained",
            fix=fix,
        )
        weights = find_weights(self.directory)
        self.passed_over = weights.passed_over
        self._stored = _without_copies(weights.tensors, tied_names(self.arch))
        self._check()

    def _check(self) -> None:
        """Names, shapes and dtypes."""
        wanted = self.text_shapes | self.vision_shapes
        missing = sorted(wanted.keys() - self._stored.keys())
        extra = sorted(self._stored.keys() - wanted.keys())
        require(
            not missing,
            field="checkpoint:missing tensor",
            value=some(missing),
            allowed="every tensor of its config.json",
            fix=REFETCH,
        )
        require(
            not extra,
            field="checkpoint:extra tensor",
            value=some(extra),
            allowed="no tensor beyond its config.json",
            fix=REFETCH,
        )
        for name, shape in wanted.items():
            found = self._stored[name]
            require(
                found.shape == shape,
                field=f"checkpoint:shape of {name}",
                value=list(found.shape),
                allowed=str(list(shape)),
                fix=REFETCH,
            )
            allowed = (*_READ, *_COUNTS) if name in self.vision_shapes else _READ
            fix = "name the checkpoint that it was made from"
            require(
                found.dtype in allowed,
                field=f"checkpoint:dtype of {name}",
                value=found.dtype,
                allowed=", ".join(allowed),
                fix=fix,
            )

    @cached_property
    def text_shapes(self) -> dict[str, Shape]:
        """Names and shapes of the text model's tensors."""
        return text_tensors(self.arch)

    @cached_property
    def vision_shapes(self) -> dict[str, Shape]:
        """Names and shapes of the vision tower's tensors; empty for a checkpoint without one."""
        return vision_tensors(self.arch)

    def stored_dtype(self, name: str) -> str:
        """Dtype a tensor is stored in, as safetensors spells it (``BF16``)."""
        return self._stored[name].dtype

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor, in the dtype it is stored in.

        Raises:
            FieldError: when the tensor holds NaN, infinity, or a number that bfloat16 or float32 does not reach.
        """
        tensor = self._stored[name].read()
        if not tensor.is_floating_point():
            return tensor
        low, high = tensor.aminmax()  # NaN shows in both; many times faster than isfinite over every number
        require(
            bool(low.isfinite() & high.isfinite()),
            field=f"checkpoint:{name}",
            value="NaN or infinity",
            allowed="finite numbers",
            fix=REFETCH,
        )
        largest = max(-float(low), float(high))
        require(
            largest <= _LARGEST,
            field=f"checkpoint:{name}",
            value=largest,
            allowed=f"at most {_LARGEST:.3e} either way: more is infinite in bfloat16 or float32",
            fix=REFETCH,
        )
        return tensor

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Read tensors one after another; at most one is held at a time."""
        for name in names:
            yield name, self.tensor(name)

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """Contents of ``generation_config.json``; empty when there is none.

        Raises:
            FieldError: when it is no JSON object.
        """
        path = self.directory / "generation_config.json"
        return read_object(path, path.name, REFETCH) if os.path.lexists(path) else {}

    @property
    def tokenizer_files(self) -> list[Path]:
        """As :func:`tokenizer_files` finds them."""
        return tokenizer_files(self.directory)

    @cached_property
    def sha256(self) -> str:
        """One hash over config.json, generation_config.json, the tokenizer's files, all weights and their index."""
        digest = hashlib.sha256()
        fixed = [self.directory / name for name in ("config.json", "generation_config.json", INDEX)]
        fixed += self.tokenizer_files
        for path in [*fixed, *sorted({stored.file for stored in self._stored.values()})]:
            if path.is_file():
                digest.update(path.name.encode() + file_sha256(path).encode())
        return digest.hexdigest()


def _without_copies(tensors: Mapping[str, Stored], tied: Mapping[str, str]) -> dict[str, Stored]:
    """The tensors without those that are others under a second name; one that is only there as such takes its own.

    Raises:
        FieldError: when two that are one in the model hold different numbers.
    """
    found = {name: stored for name, stored in tensors.items() if name not in tied}
    for other, name in tied.items():
        if other not in tensors:
            continue
        if name not in found:
            found[name] = tensors[other]
            continue
        require(
            found[name].equals(tensors[other]),
            field=f"checkpoint:{other}",
            value=f"other numbers than {found[name].name}",
            allowed="the same: they are one tensor of the model (tie_word_embeddings)",
            fix="remove the wrong one, or export the checkpoint again",
        )
    return found
