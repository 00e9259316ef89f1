"""Attention of one layer over [cache; new tokens]."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trtllm_build.network.norm import rms_norm
from trtllm_build.network.rope import rotate
from trtllm_build.network.weights import LayerWeights

KV = tuple[Tensor, Tensor]  # keys and values, each [kv_heads, length, head_size]


def project(x: Tensor, w: LayerWeights, head_size: int, rope: tuple[Tensor, Tensor], eps: float) -> tuple[Tensor, KV]:
    """Queries, keys and values of new tokens, normed and rotated.

    Args:
        x: ``[tokens, hidden]``, already normed.
        w: the layer's weights.
        head_size: width of a head.
        rope: cosine and sine, each ``[tokens, head_size]``.
        eps: of the norms.

    Returns:
        Queries ``[heads, tokens, head_size]`` and ``(keys, values)``, each ``[kv_heads, tokens, head_size]``.
    """
    tokens = x.shape[0]
    q = F.linear(x, w.q_proj).view(tokens, -1, head_size)
    k = F.linear(x, w.k_proj).view(tokens, -1, head_size)
    v = k if w.v_proj is None else F.linear(x, w.v_proj).view(tokens, -1, head_size)
    q = rotate(rms_norm(q, w.q_norm, eps), *rope)
    k = rotate(rms_norm(k, w.k_norm, eps), *rope)
    v = rms_norm(v, None, eps)
    return q.transpose(0, 1), (k.transpose(0, 1), v.transpose(0, 1))


def append(cache: KV, new: KV) -> KV:
    """Cache with new entries at its end."""
    return torch.cat([cache[0], new[0]], dim=1), torch.cat([cache[1], new[1]], dim=1)


def attend(q: Tensor, kv: KV, mask: Tensor | None) -> Tensor:
    """Softmax attention at scale 1.0 (queries and keys are normed): ``[tokens, heads * head_size]``.

    Args:
        q: ``[heads, tokens, head_size]``.
        kv: keys and values ``[kv_heads, length, head_size]``.
        mask: ``[tokens, length]`` bool, true where attended; None attends to everything.
    """
    out = F.scaled_dot_product_attention(
        q[None], kv[0][None], kv[1][None], attn_mask=mask, scale=1.0, enable_gqa=q.shape[0] != kv[0].shape[0]
    )
    return out[0].transpose(0, 1).reshape(q.shape[1], -1)


def causal_mask(tokens: int, cached: int, window: int | None) -> Tensor:
    """Which of ``[cached; tokens]`` each new token may read: itself and what is before it, within ``window``.

    Returns:
        ``[tokens, cached + tokens]`` bool.
    """
    query = torch.arange(cached, cached + tokens)[:, None]
    key = torch.arange(cached + tokens)[None, :]
    mask = key <= query
    return mask if window is None else mask & (query - key < window)
