"""One layer in the graph: attention over what is cached and what is new, dense MLP, router and all experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from nemo_diffgemma.architecture import Architecture
from trtllm_build.lowering.graph import Graph
from trtllm_build.lowering.initializers import LoweredLayer
from trtllm_build.lowering.products import linear
from trtllm_build.network.rope import inverse_frequencies

_FAR = -1e30  # the score of what a query does not read


@dataclass(frozen=True)
class Frame:
    """What every layer of a call reads beside hidden states.

    Args:
        denoise: whether the phase is denoise, ``[]`` bool.
        mask: by kind of layer (global or not), ``[tokens, cached + tokens]`` bool: what a query reads.
        rope: by kind of layer, cosine and sine, each ``[tokens, 1, head_size]``.
    """

    denoise: str
    mask: dict[bool, str]
    rope: dict[bool, tuple[str, str]]


def frame(g: Graph, arch: Architecture, ids: str, phase: str, position: str, cached: Mapping[bool, str]) -> Frame:
    """Masks and rotations of a call.

    Args:
        g: the graph.
        arch: the network's shapes.
        ids: ``[tokens]``.
        phase: 0 encode, 1 denoise, ``[]`` int64.
        position: tokens that the sequence holds, ``[]`` int64.
        cached: by kind of layer, keys of one such layer, ``[rows, kv_heads, head_size]``. Rows past those held are
            not read: there may be some, as there have to be in an empty cache.
    """
    denoise = g.op("Equal", phase, g.constant(1, torch.int64))
    tokens = g.count(g.shape(ids, 0))
    positions = g.op("Unsqueeze", g.cast(g.op("Add", tokens, position), torch.float32), g.ints(1))
    rope = {kind: _rotation(g, arch, positions, kind) for kind in cached}
    rows = g.op("Unsqueeze", tokens, g.ints(1))
    ahead = g.op("Sub", rows, g.op("Unsqueeze", tokens, g.ints(0)))  # [tokens, tokens]
    mask = {}
    for is_global, keys in cached.items():
        window = None if is_global else g.constant(arch.sliding_window, torch.int64)
        most = g.constant(arch.sliding_window - 1, torch.int64)
        held = position if is_global else g.op("Min", position, most)
        column = g.op("Unsqueeze", g.count(g.shape(keys, 0)), g.ints(0))
        # a cached key reads as far back as its distance says, whatever its row
        distance = g.op("Sub", g.op("Add", rows, held), column)  # [tokens, cached]
        old = g.op("Or", denoise, _within(g, distance, window))
        old = g.op("And", old, g.op("Less", column, held))
        new = g.op("And", g.op("GreaterOrEqual", ahead, g.constant(0, torch.int64)), _within(g, ahead, window))
        reads = g.op("Concat", old, g.op("Or", denoise, new), axis=1)
        mask[is_global] = reads
    return Frame(denoise, mask, rope)


def _within(g: Graph, distance: str, window: str | None) -> str:
    """Whether a key is less than a window away."""
    if window is None:
        return g.op("Equal", distance, distance)
    return g.op("Less", distance, window)


def _rotation(g: Graph, arch: Architecture, positions: str, is_global: bool) -> tuple[str, str]:
    frequencies = inverse_frequencies(arch, is_global)
    name = f"rope_{'global' if is_global else 'sliding'}"
    angles = g.op("Mul", positions, g.weight(name, torch.cat([frequencies, frequencies])[None]))
    cos, sin = (g.op("Unsqueeze", g.narrow(g.op(kind, angles)), g.ints(1)) for kind in ("Cos", "Sin"))
    return cos, sin


def rms_norm(g: Graph, x: str, weight: str | None, eps: float) -> str:
    """See :func:`trtllm_build.network.norm.rms_norm`; ``weight`` is in the graph's dtype."""
    wide = g.wide(x)
    mean = g.op("ReduceMean", g.op("Mul", wide, wide), g.ints(-1), keepdims=1)
    root = g.op("Sqrt", g.op("Add", mean, g.constant(eps, torch.float32)))
    normed = g.op("Div", wide, root)
    return g.narrow(normed if weight is None else g.op("Mul", normed, g.wide(weight)))


def gelu_gated(g: Graph, both: str, axis: int) -> str:
    """``gelu_tanh(gate) * up`` of gate and up, one behind the other along ``axis``."""
    gate, up = g.ops("Split", both, outputs=2, axis=axis, num_outputs=2)
    return g.op("Mul", g.op("Gelu", gate, approximate="tanh"), up)


class LayerGraph:
    """Adds one layer to the graph.

    Args:
        g: the graph.
        arch: the network's shapes.
        index: of the layer.
        weights: of the layer.
        scales: of quantised products' inputs, by ``layer_000.qkv`` and so on.
    """

    def __init__(self, g: Graph, arch: Architecture, index: int, weights: LoweredLayer, scales: Mapping[str, float]):
        self._g, self._arch, self._index, self._weights, self._scales = g, arch, index, weights, scales
        self._name = f"layer_{index:03d}"
        self._rest = {n: g.weight(f"{self._name}.{n}", t) for n, t in weights.rest.items()}

    def add(self, hidden: str, keys: str, values: str, frame: Frame) -> tuple[str, str, str]:
        """The layer's hidden states ``[tokens, hidden]``, and the new keys and values.

        Args:
            hidden: ``[tokens, hidden]``.
            keys, values: cached, ``[rows, kv_heads, head_size]``.
            frame: of the call.
        """
        g, rest = self._g, self._rest
        q, k, v = self._heads(self._norm(hidden, "input_norm"), frame)
        attended = self._attend(q, g.op("Concat", keys, k, axis=0), g.op("Concat", values, v, axis=0), frame)
        residual = g.op("Add", hidden, self._norm(self._linear("o", attended), "post_attention_norm"))
        inner = gelu_gated(g, self._linear("gate_up", self._norm(residual, "pre_mlp_norm")), 1)
        dense = self._norm(self._linear("down", inner), "post_mlp_norm")
        sparse = self._norm(self._experts(residual), "post_experts_norm")
        both = self._norm(g.op("Add", dense, sparse), "post_feedforward_norm")
        scalar = g.op("Where", frame.denoise, rest["denoise_scalar"], rest["encode_scalar"])
        return g.op("Mul", g.op("Add", residual, both), scalar), k, v

    def _norm(self, x: str, name: str | None) -> str:
        return rms_norm(self._g, x, name and self._rest[name], self._arch.rms_norm_eps)

    def _linear(self, product: str, x: str) -> str:
        name = f"{self._name}.{product}"
        return linear(self._g, x, name, self._weights.products[product], self._scales.get(name))

    def _heads(self, x: str, frame: Frame) -> tuple[str, str, str]:
        """Queries, keys and values ``[tokens, heads or kv_heads, head_size]``, normed and turned."""
        g, arch = self._g, self._arch
        is_global = arch.is_global(self._index)
        heads, kv, size = arch.num_attention_heads, arch.kv_heads(self._index), arch.head_size(self._index)
        counts = [heads, kv] if is_global else [heads, kv, kv]
        together = g.reshape(self._linear("qkv", x), 0, sum(counts), size)
        q, k, *values = g.ops("Split", together, g.ints(*counts), outputs=len(counts), axis=1)
        rope = frame.rope[is_global]
        v = values[0] if values else k
        return (
            self._rotate(self._norm(q, "q_norm"), rope),
            self._rotate(self._norm(k, "k_norm"), rope),
            self._norm(v, None),
        )

    def _rotate(self, x: str, rope: tuple[str, str]) -> str:
        g = self._g
        first, second = g.ops("Split", x, outputs=2, axis=2, num_outputs=2)
        turned = g.op("Concat", g.op("Neg", second), first, axis=2)
        return g.op("Add", g.op("Mul", x, rope[0]), g.op("Mul", turned, rope[1]))

    def _attend(self, q: str, keys: str, values: str, frame: Frame) -> str:
        """``[tokens, heads * head_size]``; heads of one key-value head are more queries of it."""
        g, arch = self._g, self._arch
        kv, size = arch.kv_heads(self._index), arch.head_size(self._index)
        groups = arch.num_attention_heads // kv
        queries = g.op("Transpose", g.reshape(q, 0, kv, groups, size), perm=[1, 2, 0, 3])
        by_query = g.op("Unsqueeze", g.op("Transpose", keys, perm=[1, 2, 0]), g.ints(1))  # [kv, 1, size, all]
        scores = g.wide(g.op("MatMul", queries, by_query))
        reads = frame.mask[arch.is_global(self._index)]
        shares = g.op("Softmax", g.op("Where", reads, scores, g.constant(_FAR, torch.float32)), axis=-1)
        by_share = g.op("Unsqueeze", g.op("Transpose", values, perm=[1, 0, 2]), g.ints(1))  # [kv, 1, all, size]
        out = g.op("MatMul", g.narrow(shares), by_share)
        return g.reshape(g.op("Transpose", out, perm=[2, 0, 1, 3]), -1, arch.num_attention_heads * size)

    def _experts(self, residual: str) -> str:
        """All experts of all tokens; one that a token does not use weighs nothing."""
        g, arch = self._g, self._arch
        experts, width = arch.num_experts, arch.moe_intermediate_size
        both = self._linear("experts_gate_up", self._norm(residual, "pre_experts_norm"))
        gated = gelu_gated(g, g.reshape(both, 0, experts, 2 * width), 2)
        weighted = g.op("Mul", gated, g.op("Unsqueeze", g.narrow(self._route(residual)), g.ints(2)))
        return self._linear("experts_down", g.reshape(weighted, 0, experts * width))

    def _route(self, residual: str) -> str:
        """Weight of every expert for every token, ``[tokens, experts]`` float32; the router reads the raw residual."""
        g, arch, rest = self._g, self._arch, self._rest
        routed = g.op("Mul", self._norm(residual, None), rest["router_scale"])
        scale = g.constant(arch.hidden_size**-0.5, torch.float32)
        scores = g.op("Mul", g.wide(g.op("Gemm", routed, rest["router_proj"], transB=1)), scale)
        likely, which = g.ops("TopK", g.op("Softmax", scores, axis=-1), g.ints(arch.top_k_experts), outputs=2)
        shares = g.op("Div", likely, g.op("ReduceSum", likely, g.ints(-1), keepdims=1))
        columns = g.ints(*range(arch.num_experts))
        chosen = g.op("Equal", g.op("Unsqueeze", which, g.ints(2)), columns)  # [tokens, top_k, experts]
        zero = g.constant(0.0, torch.float32)
        spread = g.op("Where", chosen, g.op("Unsqueeze", shares, g.ints(2)), zero)
        return g.op("Mul", g.op("ReduceSum", spread, g.ints(1), keepdims=0), g.wide(rest["per_expert_scale"]))
