"""Hugging Face-layout checkpoints: strict to open, streamed tensor by tensor."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.files import file_sha256, some

DECODER = "model.decoder."
ENCODER_SCALAR = "model.encoder.language_model.layers.{}.layer_scalar"
VISION_PREFIXES = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Everything beside the weights that belongs to a checkpoint and travels with it.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
)
# Conversations that travel with a checkpoint: those kept from training, to measure quality on; and some that it was
# trained on, to find scales of activations with.
HELD_OUT, CALIBRATION = "held_out.jsonl", "calibration.jsonl"
_REFETCH = "download or export the checkpoint again"

Shape = tuple[int, ...]


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


def vision_tensors(arch: Architecture) -> dict[str, Shape]:
    """Names and shapes of the vision tower and its projection, as transformers builds them (on the meta device)."""
    if arch.vision_config is None:
        return {}
    return {name: tuple(t.shape) for name, t in _vision_modules(arch, "meta").items()}


def new_vision_tensors(arch: Architecture, seed: int) -> dict[str, torch.Tensor]:
    """Freshly initialised vision tensors: a model trained from nothing still needs them to load in transformers."""
    if arch.vision_config is None:
        return {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _vision_modules(arch, "cpu")


def _vision_modules(arch: Architecture, device: str) -> dict[str, torch.Tensor]:
    # transformers is only needed here, and takes seconds to import
    from transformers import AutoModel, DiffusionGemmaConfig
    from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaMultimodalEmbedder

    config = DiffusionGemmaConfig(**arch.to_hf())
    with torch.device(device):
        parts = {
            VISION_PREFIXES[0]: AutoModel.from_config(config.vision_config),
            VISION_PREFIXES[1]: DiffusionGemmaMultimodalEmbedder(config.vision_config, config.text_config),
        }
    return {prefix + name: t for prefix, module in parts.items() for name, t in module.state_dict().items()}


class Checkpoint:
    """A checkpoint directory whose names, shapes and file lengths have been checked before any weight is read.

    Raises:
        FieldError: when a file is missing, unreadable or truncated, or a tensor missing, extra or of the wrong shape.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.arch = Architecture.load(self.directory)
        self._file_of = {name: path for path in self._weight_files() for name in self._open(path)}
        self._check_names_and_shapes()

    def _weight_files(self) -> list[Path]:
        index = self.directory / INDEX
        if not index.is_file():
            single = self.directory / SINGLE
            require(single.is_file(), "checkpoint", str(self.directory), f"{SINGLE} or {INDEX} in it", _REFETCH)
            return [single]
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        for name in names:
            require((self.directory / name).is_file(), "checkpoint", name, f"every shard {INDEX} names", _REFETCH)
        return [self.directory / name for name in names]

    def _open(self, path: Path) -> dict[str, Any]:
        """Header of one safetensors file, after comparing the file's length with what the header promises."""
        field = f"checkpoint:{path.name}"
        # safetensors writes files that their owner alone may read: another user's, as in a container, stops here
        fix = f"chmod -R a+rX {self.directory}, or run as their owner"
        require(os.access(path, os.R_OK), field, f"not readable for user {os.getuid()}", "a readable file", fix)
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            require(8 + length <= size, field, f"{size} bytes", "a whole safetensors file", _REFETCH)
            try:
                header: dict[str, Any] = json.loads(file.read(length))
            except ValueError:
                raise FieldError(field, "unreadable header", "a whole safetensors file", _REFETCH) from None
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        require(size == end, field, f"{size} bytes", f"{end} bytes, as its header says", _REFETCH)
        self._headers = getattr(self, "_headers", {}) | header
        return header

    def _check_names_and_shapes(self) -> None:
        wanted = self.text_shapes | self.vision_shapes
        missing = sorted(wanted.keys() - self._file_of.keys())
        extra = sorted(self._file_of.keys() - wanted.keys())
        require(not missing, "checkpoint:missing tensor", some(missing), "every tensor of its config.json", _REFETCH)
        require(not extra, "checkpoint:extra tensor", some(extra), "no tensor beyond its config.json", _REFETCH)
        for name, shape in wanted.items():
            found = tuple(self._headers[name]["shape"])
            require(found == shape, f"checkpoint:shape of {name}", list(found), str(list(shape)), _REFETCH)

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
        return str(self._headers[name]["dtype"])

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor, in the dtype it is stored in.

        Raises:
            FieldError: when the tensor holds NaN or infinity.
        """
        with safe_open(self._file_of[name], "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        low, high = tensor.aminmax()  # NaN shows in both; many times faster than isfinite over every number
        require(
            bool(low.isfinite() & high.isfinite()), f"checkpoint:{name}", "NaN or infinity", "finite numbers", _REFETCH
        )
        return tensor

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Read tensors one after another; at most one is held at a time."""
        for name in names:
            yield name, self.tensor(name)

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """Contents of ``generation_config.json``; empty when there is none."""
        path = self.directory / "generation_config.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    @property
    def tokenizer_files(self) -> list[Path]:
        """Paths of the tokenizer's files that exist; empty when the checkpoint has no tokenizer."""
        return [self.directory / name for name in TOKENIZER_FILES if (self.directory / name).is_file()]

    @cached_property
    def sha256(self) -> str:
        """One hash over config.json, generation_config.json, the tokenizer's files and all weights."""
        digest = hashlib.sha256()
        fixed = [self.directory / "config.json", self.directory / "generation_config.json", *self.tokenizer_files]
        for path in [*fixed, *sorted(set(self._file_of.values()))]:
            if path.is_file():
                digest.update(path.name.encode() + file_sha256(path).encode())
        return digest.hexdigest()
