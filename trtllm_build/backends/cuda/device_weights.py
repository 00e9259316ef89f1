"""The engine's weights on a device: products that read the same rows lie in one tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import Checkpoint, text_tensors
from trtllm_build.network.weights import HEAD, SCALE, layer_file, weight_files
from trtllm_build.quantization.fp8 import Fp8, Rows, widen
from trtllm_build.quantization.recipe import Recipe, named_recipe
from trtllm_build.quantization.weight_files import stored_rows
from trtllm_build.spec import EngineSpec

_SEED = 20260611  # of random weights: the same bundle always means the same ones
Read = Callable[[str, str], Rows]
"""``read(file, name)``: a tensor by the network's name for it, on the device."""


@dataclass(frozen=True)
class DeviceLayer:
    """Tensors of one layer. ``Rows [out, in]`` are quantised or not; of experts ``[experts, out, in]``.

    Args:
        qkv: projections of queries, keys and (in sliding layers) values, one below the other.
        o: attention's output projection.
        gate_up: of the dense MLP, gate above up.
        down: of the dense MLP.
        experts_gate_up: of the experts, gate above up.
        experts_down: of the experts.
        rest: everything that is never quantised, by the network's name.
    """

    qkv: Rows
    o: Rows
    gate_up: Rows
    down: Rows
    experts_gate_up: Rows
    experts_down: Rows
    rest: dict[str, Tensor]

    @property
    def quantized(self) -> bool:
        """Whether the rows that its products read are to be quantised."""
        return isinstance(self.experts_gate_up, Fp8)


@dataclass(frozen=True)
class DeviceWeights:
    """Everything the network reads.

    Args:
        embedding: ``[vocab, hidden]``, also the output projection.
        final_norm, conditioning_norm: ``[hidden]``.
        conditioning_gate_up, conditioning_down: MLP of the self-conditioning.
        layers: one a layer.
    """

    embedding: Tensor
    final_norm: Tensor
    conditioning_norm: Tensor
    conditioning_gate_up: Tensor
    conditioning_down: Tensor
    layers: tuple[DeviceLayer, ...]

    @classmethod
    def read(cls, arch: Architecture, read: Read) -> Self:
        """Assemble; at most one layer's tensors are there twice."""

        def plain(name: str) -> Tensor:
            tensor = read(HEAD, name)
            assert isinstance(tensor, Tensor), f"{name} is never quantised"
            return tensor

        gate_up = torch.cat([plain("conditioning_gate_proj"), plain("conditioning_up_proj")])
        layers = tuple(_layer(arch, i, read) for i in range(arch.num_hidden_layers))
        norms = plain("final_norm"), plain("conditioning_norm")
        return cls(plain("embedding"), *norms, gate_up, plain("conditioning_down_proj"), layers)

    def nbytes(self) -> int:
        """Bytes of all of them: what a denoising step reads once, when every expert is used."""
        head = (self.embedding, self.final_norm, self.conditioning_norm, self.conditioning_gate_up)
        rows = [r for w in self.layers for r in (w.qkv, w.o, w.gate_up, w.down, w.experts_gate_up, w.experts_down)]
        rest = [t for w in self.layers for t in w.rest.values()]
        return sum(_bytes(r) for r in (*head, self.conditioning_down, *rows, *rest))


_PRODUCTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _layer(arch: Architecture, index: int, read: Read) -> DeviceLayer:
    file = layer_file(index)
    names = weight_files(arch)[file]
    together = ["q_proj", "k_proj", *(["v_proj"] if "v_proj" in names else [])]
    rest = {n: read(file, n) for n in names if n not in _PRODUCTS and not n.startswith("experts_")}
    return DeviceLayer(
        qkv=_stack([read(file, n) for n in together]),
        o=read(file, "o_proj"),
        gate_up=_stack([read(file, "gate_proj"), read(file, "up_proj")]),
        down=read(file, "down_proj"),
        experts_gate_up=read(file, "experts_gate_up"),
        experts_down=read(file, "experts_down"),
        rest={n: t for n, t in rest.items() if isinstance(t, Tensor)},
    )


def _stack(parts: list[Rows]) -> Rows:
    """Output channels of several products, one below the other."""
    if isinstance(parts[0], Fp8):
        quantized = [p for p in parts if isinstance(p, Fp8)]
        # torch cannot concatenate float8 on every device: bytes it can
        values = torch.cat([p.values.view(torch.uint8) for p in quantized]).view(parts[0].values.dtype)
        return Fp8(values, torch.cat([p.scale for p in quantized]))
    return torch.cat([p for p in parts if isinstance(p, Tensor)])


def _bytes(rows: Rows) -> int:
    return rows.values.nbytes + rows.scale.nbytes if isinstance(rows, Fp8) else rows.nbytes


def from_bundle(spec: EngineSpec, device: torch.device) -> DeviceWeights:
    """Read a bundle's weight files to a device."""

    @cache
    def opened(file: str) -> Any:
        return safe_open(spec.weight_path(file), "pt", device=str(device))

    @cache
    def names(file: str) -> frozenset[str]:
        return frozenset(opened(file).keys())

    def read(file: str, name: str) -> Rows:
        values: Tensor = opened(file).get_tensor(name)
        return Fp8(values, opened(file).get_tensor(name + SCALE)) if name + SCALE in names(file) else values

    return DeviceWeights.read(spec.arch, read)


def widened(weights: DeviceWeights) -> DeviceWeights:
    """The same numbers in float32, none of them quantised."""

    def layer(w: DeviceLayer) -> DeviceLayer:
        products = {f.name: widen(getattr(w, f.name)) for f in fields(w) if f.name != "rest"}
        return DeviceLayer(**products, rest={name: tensor.float() for name, tensor in w.rest.items()})

    head = {f.name: getattr(weights, f.name).float() for f in fields(weights) if f.name != "layers"}
    return DeviceWeights(**head, layers=tuple(layer(w) for w in weights.layers))


def load_weights(spec: EngineSpec, device: torch.device) -> DeviceWeights:
    """A bundle's weights on a device: read, or made where they are random."""
    if spec.random_precision is None:
        return from_bundle(spec, device)
    return random_weights(spec.arch, named_recipe(spec.random_precision), device, _SEED)


def from_checkpoint(checkpoint: Checkpoint, recipe: Recipe, device: torch.device) -> DeviceWeights:
    """Quantise in memory, writing nothing: for models that fit."""
    files = weight_files(checkpoint.arch)

    def read(file: str, name: str) -> Rows:
        return stored_rows(name, checkpoint.tensor(files[file][name]).to(device), recipe)

    return DeviceWeights.read(checkpoint.arch, read)


def random_weights(arch: Architecture, recipe: Recipe, device: torch.device, seed: int) -> DeviceWeights:
    """Weights of the right shapes that mean nothing: what they take and how fast they run is real.

    Products keep the variance of what they read; norms are 1; ``q_norm`` is such that attention is neither uniform nor
    on one key; the router's logits are close to each other, so that tokens spread over all experts.
    """
    generator = torch.Generator(device).manual_seed(seed)
    files, shapes = weight_files(arch), text_tensors(arch)
    dtype = getattr(torch, recipe.dtype)

    def read(file: str, name: str) -> Rows:
        shape = shapes[files[file][name]]
        if name == "q_norm":
            return torch.full(shape, float(shape[0]) ** -0.5, dtype=dtype, device=device)
        if len(shape) == 1:
            return torch.ones(shape, dtype=dtype, device=device)
        tensor = torch.empty(shape, dtype=dtype, device=device)
        tensor.normal_(0.0, float(shape[-1]) ** -0.5, generator=generator)
        return stored_rows(name, tensor, recipe)

    return DeviceWeights.read(arch, read)
