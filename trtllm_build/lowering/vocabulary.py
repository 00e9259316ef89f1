"""From hidden states to tokens in the graph: argmax, sample, entropy and soft embedding of every position."""

from __future__ import annotations

import torch

from nemo_diffgemma.architecture import Architecture
from trtllm_build.contract import SUB
from trtllm_build.lowering.graph import Graph

_FAR = -1e30
_BELOW_ONE = 1 - 2.0**-20  # so that a draw stays below the sum that it is a share of, in float32


def read_out(
    g: Graph,
    arch: Architecture,
    hidden: str,
    table: str,
    scale: str,
    inverse_temperature: str,
    draws: str,
    allowed: str,
) -> tuple[str, str, str, str]:
    """One step's read-out; nothing of vocabulary width leaves the graph.

    Args:
        g: the graph.
        arch: the network's shapes.
        hidden: normed, ``[rows, hidden]``.
        table: tied embedding ``[vocab, hidden]``.
        scale: of embeddings, ``[]``.
        inverse_temperature: ``[]`` float32.
        draws: ``[rows]`` float32, uniforms in [0, 1).
        allowed: tokens that each row may choose, ``[rows, vocab]`` bool.

    Returns:
        Argmax ids ``[rows]`` int64, sampled ids ``[rows]`` int64, entropy ``[rows]`` float32, and the next soft
        embeddings ``[rows, hidden]``.
    """
    cap = g.constant(arch.final_logit_softcapping, torch.float32)
    capped = g.op("Mul", g.op("Tanh", g.op("Div", g.wide(g.op("Gemm", hidden, table, transB=1)), cap)), cap)
    tempered = g.op("Mul", capped, inverse_temperature)
    tempered = g.op("Where", allowed, tempered, g.constant(_FAR, torch.float32))
    top, argmax = g.ops("TopK", tempered, g.ints(1), outputs=2)
    below = g.op("Sub", tempered, top)
    weights = g.op("Exp", below)  # [rows, vocab], 1 at the highest
    total = g.op("ReduceSum", weights, g.ints(-1), keepdims=1)
    # from how far logits are below the highest: no difference of large numbers
    fall = g.op("ReduceSum", g.op("Mul", weights, below), g.ints(-1), keepdims=1)
    entropy = g.op("Sub", g.op("Log", total), g.op("Div", fall, total))
    expected = g.op("Div", g.wide(g.op("MatMul", g.narrow(weights), table)), total)
    soft = g.op("Mul", g.narrow(expected), scale)
    sampled = _sample(g, arch.vocab_size, weights, draws)
    return g.op("Squeeze", argmax, g.ints(1)), sampled, g.op("Squeeze", entropy, g.ints(1)), soft


def _sample(g: Graph, vocab: int, weights: str, draws: str) -> str:
    """The first token whose cumulative probability exceeds the draw: first its sub-chunk, then within it.

    The draw's place between the sub-chunk's bounds is carried over, so that rounding cannot push it out.
    """
    missing = -vocab % SUB
    if missing:
        weights = g.op("Pad", weights, g.ints(0, 0, 0, missing))
    parts = g.reshape(weights, 0, (vocab + missing) // SUB, SUB)
    sums = g.op("ReduceSum", parts, g.ints(2), keepdims=0)  # [rows, subs]
    share = g.op("Unsqueeze", g.op("Min", draws, g.constant(_BELOW_ONE, torch.float32)), g.ints(1))
    cumulative, target, which = _first_above(g, sums, share)
    inside = g.op("GatherElements", sums, which, axis=1)
    before = g.op("Sub", g.op("GatherElements", cumulative, which, axis=1), inside)
    place = g.op("Div", g.op("Sub", target, before), inside)
    zero, one = g.constant(0.0, torch.float32), g.constant(_BELOW_ONE, torch.float32)
    place = g.op("Min", g.op("Max", place, zero), one)
    within = g.op("GatherND", parts, which, batch_dims=1)  # [rows, SUB]
    *_, token = _first_above(g, within, place)
    first = g.op("Mul", which, g.constant(SUB, torch.int64))
    return g.op("Squeeze", g.op("Add", first, token), g.ints(1))


def _first_above(g: Graph, weights: str, share: str) -> tuple[str, str, str]:
    """Cumulative sums, the share of their last ``[rows, 1]``, and the first index whose sum exceeds that."""
    cumulative = g.op("CumSum", weights, g.constant(1, torch.int64))
    last = g.op("Slice", cumulative, g.ints(-1), g.ints(2**31), g.ints(1))
    target = g.op("Mul", last, share)
    passed = g.cast(g.op("LessOrEqual", cumulative, target), torch.int64)
    return cumulative, target, g.op("ReduceSum", passed, g.ints(1), keepdims=1)
