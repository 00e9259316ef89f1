"""Weights in the shape in which the graph multiplies them: one matrix a product, quantised or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import Checkpoint
from trtllm_build.lowering.products import Weight
from trtllm_build.network.weights import NetworkWeights, layer_file, weight_files
from trtllm_build.quantization.fp8 import LARGEST, SMALLEST, Fp8
from trtllm_build.quantization.nvfp4 import Nvfp4, dequantize, quantize_nvfp4
from trtllm_build.quantization.recipe import Recipe, class_of

Read = Callable[[str, str], Tensor]
"""``read(file, name)``: a tensor by the network's name for it, as the checkpoint has it."""

PRODUCTS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
    "experts_gate_up": ("experts_gate_up",),
    "experts_down": ("experts_down",),
}
PRODUCT_OF = {name: product for product, names in PRODUCTS.items() for name in names}


@dataclass(frozen=True)
class LoweredLayer:
    """One layer.

    Args:
        products: by the names of :data:`PRODUCTS`: ``[out, in]``; of the experts ``[experts * 2 * width, hidden]`` and
            ``[hidden, experts * width]``.
        rest: everything that is never quantised, by the network's name.
    """

    products: dict[str, Weight]
    rest: dict[str, Tensor]


def reader(checkpoint: Checkpoint) -> Read:
    """Read from a checkpoint."""
    files = weight_files(checkpoint.arch)
    return lambda file, name: checkpoint.tensor(files[file][name])


def lower_layer(arch: Architecture, index: int, read: Read, recipe: Recipe) -> LoweredLayer:
    """Read one layer and quantise what the recipe says."""
    file = layer_file(index)
    names = weight_files(arch)[file]
    products = {
        product: lower_product(product, [read(file, n) for n in parts if n in names], recipe)
        for product, parts in PRODUCTS.items()
    }
    dtype = getattr(torch, recipe.dtype)
    rest = {n: read(file, n).to(dtype) for n in names if n not in PRODUCT_OF}
    return LoweredLayer(products, rest)


def lower_product(product: str, parts: Sequence[Tensor], recipe: Recipe) -> Weight:
    """The checkpoint's tensors of one product as one matrix.

    Args:
        product: of :data:`PRODUCTS`.
        parts: output channels one below the other; of experts one stack ``[experts, out, in]``.
        recipe: what is quantised, and how.
    """
    stack = parts[0] if parts[0].dim() == 3 else torch.cat(list(parts))[None]
    format_ = recipe.format if class_of(PRODUCTS[product][0]) in recipe.quantize else None
    side_by_side = product == "experts_down"
    if format_ is None:
        return _join(stack.to(getattr(torch, recipe.dtype)), side_by_side)
    if format_ == "fp8":
        return _fp8(stack, side_by_side)
    q = quantize_nvfp4(stack)
    return Nvfp4(_join(q.values, side_by_side), _join(q.block_scale, side_by_side), q.scale)


def _join(stack: Tensor, side_by_side: bool) -> Tensor:
    """``[experts, out, in] -> [out, experts * in]`` or ``[experts * out, in]``."""
    return stack.transpose(0, 1).flatten(1).contiguous() if side_by_side else stack.flatten(0, 1)


def _fp8(stack: Tensor, side_by_side: bool) -> Fp8:
    """One scale an output channel of the product: where experts are side by side, they share it."""
    largest = torch.stack([expert.abs().amax(-1) for expert in stack]).float()
    if side_by_side:
        largest = largest.amax(0, keepdim=True).expand_as(largest)
    scale = largest.clamp_min(SMALLEST) / LARGEST
    values = torch.empty_like(stack, dtype=torch.float8_e4m3fn)
    for expert, s, v in zip(stack, scale, values, strict=True):
        v.copy_((expert.float() / s[:, None]).clamp(-LARGEST, LARGEST))
    # torch cannot move float8 about on every device: bytes it can
    joined = _join(values.view(torch.uint8), side_by_side).view(torch.float8_e4m3fn)
    return Fp8(joined, scale[0].clone() if side_by_side else scale.flatten())


def widen(weight: Weight) -> Tensor:
    """The matrix's numbers in float32."""
    if isinstance(weight, Tensor):
        return weight.float()
    return dequantize(weight) if isinstance(weight, Nvfp4) else weight.values.float() * weight.scale[:, None]


def widened_weights(arch: Architecture, read: Read, recipe: Recipe) -> NetworkWeights:
    """What the graph multiplies with, quantised and widened again, as the torch engine reads it: float32."""
    return NetworkWeights.read(arch, widened(arch, read, recipe))


def widened(arch: Architecture, read: Read, recipe: Recipe) -> Read:
    """A tensor at a time of :func:`widened_weights`."""
    files = weight_files(arch)

    def wide(file: str, name: str) -> Tensor:
        tensor = read(file, name)
        product = PRODUCT_OF.get(name)
        if product is None:
            return tensor.to(getattr(torch, recipe.dtype)).float()
        names = [n for n in PRODUCTS[product] if n in files[file]]
        parts = [read(file, n) for n in names]
        matrix = widen(lower_product(product, parts, recipe))
        if product == "experts_down":
            experts, out, width = tensor.shape
            return matrix.view(out, experts, width).transpose(0, 1).contiguous()
        rows = [p.shape[:-1].numel() for p in parts]
        return torch.split(matrix, rows)[names.index(name)].reshape(tensor.shape).contiguous()

    return wide
