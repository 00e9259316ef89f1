"""A model as one ONNX graph for both phases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.errors import require
from trtllm_build.lowering.graph import Graph
from trtllm_build.lowering.initializers import PRODUCTS, Read, lower_layer
from trtllm_build.lowering.layer import LayerGraph, frame, gelu_gated, rms_norm
from trtllm_build.lowering.vocabulary import read_out
from trtllm_build.network.weights import HEAD
from trtllm_build.quantization.recipe import Recipe, class_of

ENCODE, DENOISE = 0, 1  # the phase input


@dataclass(frozen=True)
class Port:
    """An input or output of the graph.

    Args:
        name: of it.
        dtype: of its elements.
        shape: a number, or the name of a dimension that a call decides.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]


def inputs(arch: Architecture, dtype: torch.dtype) -> list[Port]:
    """What a call reads.

    ``rows`` are the positions whose vocabulary outputs are wanted: all of a canvas, one of a prompt's, where they are
    thrown away. ``sets`` are sets of tokens to choose from and ``set_of`` is each row's. ``position`` is how many
    tokens the sequence holds; cached keys and values are its last ones, in their order, and any rows of finite numbers
    behind them.
    """
    hidden = arch.hidden_size
    ports = [
        Port("ids", torch.int64, ("tokens",)),
        Port("soft_embeddings", dtype, ("tokens", hidden)),
        Port("phase", torch.int64, ()),
        Port("position", torch.int64, ()),
        Port("rows", torch.int64, ("rows",)),
        Port("inverse_temperature", torch.float32, ()),
        Port("draws", torch.float32, ("rows",)),
        Port("sets", torch.bool, ("sets", arch.vocab_size)),
        Port("set_of", torch.int64, ("rows",)),
    ]
    for i in range(arch.num_hidden_layers):
        held = "held_global" if arch.is_global(i) else "held_sliding"
        ports += [Port(f"{n}_{i}", dtype, (held, arch.kv_heads(i), arch.head_size(i))) for n in ("keys", "values")]
    return ports


def outputs(arch: Architecture, dtype: torch.dtype) -> list[Port]:
    """What a call gives; new keys and values are appended to the cache when encoding, and dropped when denoising."""
    ports = [
        Port("argmax_ids", torch.int64, ("rows",)),
        Port("sampled_ids", torch.int64, ("rows",)),
        Port("entropy", torch.float32, ("rows",)),
        Port("next_soft_embeddings", dtype, ("rows", arch.hidden_size)),
        Port("hidden", dtype, ("rows", arch.hidden_size)),
    ]
    for i in range(arch.num_hidden_layers):
        shape = ("tokens", arch.kv_heads(i), arch.head_size(i))
        ports += [Port(f"new_{n}_{i}", dtype, shape) for n in ("keys", "values")]
    return ports


def quantized_products(arch: Architecture, recipe: Recipe) -> list[str]:
    """Products whose inputs need a scale, ``layer_000.qkv`` and so on."""
    kinds = [p for p, names in PRODUCTS.items() if recipe.format and class_of(names[0]) in recipe.quantize]
    return [f"layer_{i:03d}.{kind}" for i in range(arch.num_hidden_layers) for kind in kinds]


def lower(
    arch: Architecture,
    read: Read,
    recipe: Recipe,
    scales: Mapping[str, float],
    path: Path,
    progress: Callable[[str], None],
) -> None:
    """Write ``path`` and, beside it, its weights; one layer's are in memory at a time.

    Args:
        arch: the network's shapes.
        read: gives the checkpoint's tensors.
        recipe: what is quantised, and how.
        scales: of quantised products' inputs: the largest magnitude over 448. ``experts_down`` reads the gated rows
            times the router's weights.
        path: of the ONNX file.
        progress: called with a line per layer.

    Raises:
        FieldError: when a quantised product has no scale, or a weight does not fit its format.
    """
    missing = [name for name in quantized_products(arch, recipe) if name not in scales]
    require(
        not missing,
        field="calibration",
        value=f"no input scale for {len(missing)} products, the first {missing[:1]}",
        allowed="a scale for the input of every quantised product",
        fix="calibrate with this checkpoint and recipe",
    )
    dtype = getattr(torch, recipe.dtype)
    g = Graph(path, dtype)
    for port in inputs(arch, dtype):
        g.input(port.name, port.dtype, port.shape)
    table = g.weight("embedding", read(HEAD, "embedding").to(dtype))
    by_kind = {arch.is_global(i): f"keys_{i}" for i in range(arch.num_hidden_layers)}
    call = frame(g, arch, "ids", "phase", "position", by_kind)
    scale = g.weight("embed_scale", torch.tensor(arch.embed_scale, dtype=dtype))
    hidden = g.op("Mul", g.op("Gather", table, "ids"), scale)
    hidden = g.op("Where", call.denoise, _condition(g, arch, read, dtype, hidden), hidden)
    given = {}
    for i in range(arch.num_hidden_layers):
        layer = LayerGraph(g, arch, i, lower_layer(arch, i, read, recipe), scales)
        hidden, given[f"new_keys_{i}"], given[f"new_values_{i}"] = layer.add(hidden, f"keys_{i}", f"values_{i}", call)
        progress(f"layer {i + 1}/{arch.num_hidden_layers}")
    final = g.weight("final_norm", read(HEAD, "final_norm").to(dtype))
    hidden = rms_norm(g, g.op("Gather", hidden, "rows"), final, arch.rms_norm_eps)
    allowed = g.op("Gather", "sets", "set_of")
    found = read_out(g, arch, hidden, table, scale, "inverse_temperature", "draws", allowed)
    names = "argmax_ids", "sampled_ids", "entropy", "next_soft_embeddings"
    given |= dict(zip(names, found, strict=True)) | {"hidden": hidden}
    for port in outputs(arch, dtype):
        g.output(port.name, given[port.name], port.dtype, port.shape)
    g.save()


def _condition(g: Graph, arch: Architecture, read: Read, dtype: torch.dtype, embedded: str) -> str:
    """Self-conditioning: the canvas's embeddings plus an MLP of the previous step's expectation, normed."""

    def weight(name: str, *parts: str) -> str:
        return g.weight(name, torch.cat([read(HEAD, p).to(dtype) for p in parts or (name,)]))

    soft = rms_norm(g, "soft_embeddings", weight("conditioning_norm"), arch.rms_norm_eps)
    both = weight("conditioning_gate_up", "conditioning_gate_proj", "conditioning_up_proj")
    inner = gelu_gated(g, g.op("Gemm", soft, both, transB=1), 1)
    mlp = g.op("Gemm", inner, weight("conditioning_down_proj"), transB=1)
    return rms_norm(g, g.op("Add", embedded, mlp), None, arch.rms_norm_eps)
