"""What an operation is measured and judged on: this engine's weights, and rows as a denoising step gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trtllm_build.backends.cuda.cache import DeviceCache
from trtllm_build.backends.cuda.network import DeviceNetwork
from trtllm_build.backends.cuda.ops import Op, reference
from trtllm_build.limits import PAGE
from trtllm_build.quantization.fp8 import Rows, rows_to_fp8

BATCH = 2
_SEED = 1
_CACHED = 1024  # tokens before the canvas, as in the benchmark's default prompt


@dataclass(frozen=True)
class Probe:
    """One operation in place.

    Args:
        op: its name in :class:`trtllm_build.backends.cuda.ops.Ops`.
        layers: indices it is timed in, one after the other.
        judged: indices whose results decide whether it is right.
        run: ``run(op, batch, layers)`` gives results whose first rows are the first canvas's, for any batch of at most
            :data:`BATCH`.
    """

    op: str
    layers: Sequence[int]
    judged: Sequence[int]
    run: Callable[[Op, int, Sequence[int]], list[Tensor]]


def probes(network: DeviceNetwork) -> list[Probe]:
    """One for each operation that has several providers or cuts."""
    arch, weights, dtype = network.arch, network.weights, network.dtype
    device, canvas = weights.embedding.device, arch.canvas_length
    generator = torch.Generator(device).manual_seed(_SEED)

    def rows(width: int) -> Tensor:
        return torch.randn(BATCH * canvas, width, generator=generator, device=device).to(dtype)

    def prepared(x: Tensor) -> dict[int, Rows]:
        quantized = weights.layers[0].quantized
        parts = {b: x[: b * canvas].contiguous() for b in range(1, BATCH + 1)}
        return {b: rows_to_fp8(p) if quantized else p for b, p in parts.items()}

    hidden = rows(arch.hidden_size)
    inputs = prepared(hidden)
    heads = {size: prepared(rows(arch.num_attention_heads * size)) for size in {arch.head_dim, arch.global_head_dim}}
    inner = prepared(rows(arch.intermediate_size))

    def linear(op: Op, batch: int, layers: Sequence[int]) -> list[Tensor]:
        found = []
        for index in layers:
            w = weights.layers[index]
            found += [op(inputs[batch], w.qkv, dtype), op(heads[arch.head_size(index)][batch], w.o, dtype)]
            found += [op(inputs[batch], w.gate_up, dtype), op(inner[batch], w.down, dtype)]
        return found

    def route(op: Op, batch: int, layers: Sequence[int]) -> list[Tensor]:
        found = []
        for index in layers:
            r = weights.layers[index].rest
            scales = r["router_scale"], r["router_proj"], r["per_expert_scale"]
            found += op(hidden[: batch * canvas], *scales, arch.top_k_experts, arch.rms_norm_eps)
        return found

    routed = {b: route(reference("route"), b, range(arch.num_hidden_layers)) for b in range(1, BATCH + 1)}

    def experts(op: Op, batch: int, layers: Sequence[int]) -> list[Tensor]:
        found = []
        for index in layers:
            w = weights.layers[index]
            where = routed[batch][2 * index : 2 * index + 2]
            x = hidden[: batch * canvas] if getattr(op, "reads_plain", False) else inputs[batch]
            found.append(op(x, w.experts_gate_up, w.experts_down, *where, dtype))
        return found

    cached = min(_CACHED, arch.max_position_embeddings - canvas)
    room = cached + canvas
    cache = DeviceCache(arch, dtype, device, BATCH, BATCH * -(-room // PAGE), room, canvas)
    for slot in range(BATCH):
        cache.admit(slot, room, 0)
    cache.lengths[:BATCH] = cached
    for layer in cache.layers:
        for tensor in (layer.keys, layer.values):
            tensor.copy_(torch.randn(tensor.shape, generator=generator, device=device))
    new = {
        index: [
            torch.randn(BATCH, canvas, count, arch.head_size(index), generator=generator, device=device).to(dtype)
            for count in (arch.num_attention_heads, arch.kv_heads(index), arch.kv_heads(index))
        ]
        for index in {next(i for i in range(arch.num_hidden_layers) if arch.is_global(i)), 0}
    }
    slots = torch.arange(BATCH, dtype=torch.int32, device=device)

    def attend(op: Op, batch: int, layers: Sequence[int]) -> list[Tensor]:
        found = []
        for index in layers:
            like = next(i for i in new if arch.is_global(i) == arch.is_global(index))
            window = None if arch.is_global(index) else arch.sliding_window
            q, k, v = (t[:batch] for t in new[like])
            found.append(op(q, k, v, cache.layers[index], slots[:batch], window, False).flatten(0, 1))
        return found

    states = rows(arch.hidden_size)
    uniform = torch.rand(BATCH * canvas, generator=generator, device=device)

    def read_out(op: Op, batch: int, _layers: Sequence[int]) -> list[Tensor]:
        count = batch * canvas
        warm = torch.full((count,), 1 / 0.6, device=device)
        cap, scale = arch.final_logit_softcapping, arch.embed_scale
        found = op(states[:count], weights.embedding, warm, uniform[:count], None, cap, scale, True)
        return [found.entropy, found.soft_embeddings]

    layers = range(arch.num_hidden_layers)
    both = sorted(new)  # a layer of each kind
    return [
        Probe("linear", layers, both, linear),
        Probe("route", layers, [0], lambda op, batch, which: route(op, batch, which)[::2]),
        Probe("experts", layers, [0], experts),
        Probe("attend", layers, both, attend),
        Probe("read_out", [0], [0], read_out),
    ]
