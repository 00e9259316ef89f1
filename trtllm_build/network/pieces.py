"""The parts of the network that are compiled ahead of time: plain functions of tensors.

What is between them stays with kernels that are compiled already: attention, the experts' grouped products, the
products with the embedding table. One compiled piece serves every layer of its kind, since weights are arguments, and
both phases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.network.experts import gelu_gated
from trtllm_build.network.linear import linear
from trtllm_build.network.norm import rms_norm
from trtllm_build.network.rope import rotate
from trtllm_build.network.weights import LayerWeights, NetworkWeights

Piece = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Pieces:
    """One callable a piece: eager functions, or what was compiled from them."""

    condition: Piece
    project_sliding: Piece
    project_global: Piece
    before_experts_sliding: Piece
    before_experts_global: Piece
    after_experts: Piece
    statistics: Piece


PIECES = tuple(f.name for f in fields(Pieces))


def eager_pieces(arch: Architecture) -> Pieces:
    """The pieces as torch runs them operation by operation."""
    eps = arch.rms_norm_eps
    before = partial(before_experts, eps=eps, top_k=arch.top_k_experts)
    return Pieces(
        condition=partial(condition, eps=eps),
        project_sliding=partial(project, eps=eps, size=arch.head_dim),
        project_global=partial(project, eps=eps, size=arch.global_head_dim),
        before_experts_sliding=before,
        before_experts_global=before,
        after_experts=partial(after_experts, eps=eps),
        statistics=partial(statistics, cap=arch.final_logit_softcapping),
    )


def condition_weights(w: NetworkWeights) -> tuple[Tensor, ...]:
    """Weights of :func:`condition`, in its order."""
    return w.conditioning_norm, w.conditioning_gate_proj, w.conditioning_up_proj, w.conditioning_down_proj


def project_weights(w: LayerWeights) -> tuple[Tensor, ...]:
    """Weights of :func:`project`, in its order."""
    values = () if w.v_proj is None else (w.v_proj,)
    return w.input_norm, w.q_proj, w.k_proj, w.q_norm, w.k_norm, *values


def before_experts_weights(w: LayerWeights) -> tuple[Tensor, ...]:
    """Weights of :func:`before_experts`, in its order."""
    attention = w.o_proj, w.post_attention_norm
    dense = w.pre_mlp_norm, w.gate_proj, w.up_proj, w.down_proj, w.post_mlp_norm
    return *attention, *dense, w.router_scale, w.router_proj, w.per_expert_scale, w.pre_experts_norm


def condition(
    embedded: Tensor, soft: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor, *, eps: float
) -> tuple[Tensor]:
    """Self-conditioning: the canvas's embeddings plus an MLP of the previous step's expectation, normed."""
    return (rms_norm(embedded + mlp(rms_norm(soft, norm, eps), gate, up, down), None, eps),)


def mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Gated MLP: ``[tokens, hidden] -> [tokens, hidden]``."""
    return linear(gelu_gated(linear(x, gate), linear(x, up)), down)


def project(
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    norm: Tensor,
    q_proj: Tensor,
    k_proj: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    v_proj: Tensor | None = None,
    *,
    eps: float,
    size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of new tokens, normed and rotated.

    Args:
        hidden: ``[tokens, hidden]``.
        cos, sin: rotation, each ``[tokens, head_size]``.
        norm, q_proj, k_proj, q_norm, k_norm, v_proj: the layer's weights; without ``v_proj``, as in global layers, the
            value is the un-normed key projection.
        eps: of the norms.
        size: width of a head.

    Returns:
        Each ``[tokens, heads or kv_heads, head_size]``.
    """
    x = rms_norm(hidden, norm, eps)
    q, k = linear(x, q_proj), linear(x, k_proj)
    v = k if v_proj is None else linear(x, v_proj)
    q, k, v = (heads.view(heads.shape[0], -1, size) for heads in (q, k, v))
    q = rotate(rms_norm(q, q_norm, eps), cos, sin)
    return q, rotate(rms_norm(k, k_norm, eps), cos, sin), rms_norm(v, None, eps)


def before_experts(
    hidden: Tensor,
    attended: Tensor,
    o_proj: Tensor,
    post_attention_norm: Tensor,
    pre_mlp_norm: Tensor,
    gate_proj: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    post_mlp_norm: Tensor,
    router_scale: Tensor,
    router_proj: Tensor,
    per_expert_scale: Tensor,
    pre_experts_norm: Tensor,
    *,
    eps: float,
    top_k: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Attention's output projection and residual, the dense MLP, the router, and what the experts read.

    Returns:
        Residual, normed dense output and experts' input, each ``[tokens, hidden]``; weights ``[tokens, top_k]`` float32
        (they sum to 1 before ``per_expert_scale``) and expert ids ``[tokens, top_k]``.
    """
    residual = hidden + rms_norm(linear(attended, o_proj), post_attention_norm, eps)
    dense = rms_norm(mlp(rms_norm(residual, pre_mlp_norm, eps), gate_proj, up_proj, down_proj), post_mlp_norm, eps)
    # the router reads the raw residual
    routed = rms_norm(residual, None, eps) * router_scale * residual.shape[-1] ** -0.5
    probabilities = torch.softmax(linear(routed, router_proj), dim=-1, dtype=torch.float32)
    weights, ids = torch.topk(probabilities, top_k, dim=-1)
    weights = weights / weights.sum(-1, keepdim=True) * per_expert_scale[ids]
    return residual, dense, rms_norm(residual, pre_experts_norm, eps), weights, ids


def after_experts(
    residual: Tensor,
    dense: Tensor,
    sparse: Tensor,
    post_experts_norm: Tensor,
    post_feedforward_norm: Tensor,
    scalar: Tensor,
    *,
    eps: float,
) -> tuple[Tensor]:
    """Both branches together, their residual, and the phase's scalar of the layer."""
    both = dense + rms_norm(sparse, post_experts_norm, eps)
    return ((residual + rms_norm(both, post_feedforward_norm, eps)) * scalar,)


def statistics(
    products: Tensor, inverse_temperature: Tensor, highest: Tensor, *, cap: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What one chunk of the vocabulary adds to a distribution.

    Args:
        products: hidden states times embeddings ``[rows, subs, SUB]``; minus infinity where a token is ruled out.
        inverse_temperature: ``[]`` float32.
        highest: ``[rows]`` float32, the highest tempered logit before this chunk.
        cap: soft-cap of the logits.

    Returns:
        ``exp(logit - new highest)`` in the dtype and shape of ``products``; the chunk's own highest tempered logit
        ``[rows]`` and where in the chunk it is ``[rows]``; the new highest ``[rows]``; sums of the exponentials
        ``[rows, subs]``; their sum weighted with ``new highest - logit`` ``[rows]``, all float32.
    """
    wide = products.float()
    logits = torch.tanh(wide / cap) * cap * inverse_temperature
    logits = torch.where(wide == float("-inf"), wide, logits)
    flat = logits.flatten(1)
    top, where = flat.max(-1)
    new = torch.maximum(highest, top)
    below = new[:, None, None] - logits
    exponentials = torch.exp(-below)
    # a token that is ruled out has no weight, and infinitely little of it
    weighted = torch.where(wide == float("-inf"), 0.0, exponentials * below)
    return exponentials.to(products.dtype), top, where, new, exponentials.sum(-1), weighted.flatten(1).sum(-1)
