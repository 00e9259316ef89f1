"""Attention of one layer over a cache and new tokens. Scale 1.0: queries and keys are normed.

Keys and values are ``[length, kv_heads, head_size]``, so that the first tokens of a longer buffer are one contiguous
piece of it.
"""

import torch
from torch import Tensor

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Every query reads every key: ``[tokens, heads * head_size]`` for ``q [tokens, heads, head_size]``."""
    tokens, heads, size = q.shape
    groups = heads // keys.shape[1]
    # heads of one key-value head become more queries of it: keys are read once and never repeated
    folded = q.transpose(0, 1).reshape(1, -1, groups * tokens, size)
    out: Tensor = _flash(folded, _heads_first(keys), _heads_first(values), scale=1.0)[0]
    return out.view(heads, tokens, size).transpose(0, 1).reshape(tokens, -1)


def attend_causal(q: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """Queries are the last tokens of ``keys``; each reads itself and what is before it, within ``window``.

    Args:
        q: ``[tokens, heads, head_size]``.
        keys: ``[cached + tokens, kv_heads, head_size]``.
        values: like ``keys``.
        window: keys a query reads at most, its own included; None for all.

    Returns:
        ``[tokens, heads * head_size]``.
    """
    tokens, cached = q.shape[0], keys.shape[0] - q.shape[0]
    if window is not None and window < keys.shape[0]:
        # cached is less than a window here, so the mask is bounded, whatever the length of the prompt
        parts = [_masked(q, keys, values, _window_mask(tokens, cached, window))]
    else:
        parts = [_causal(q, keys[cached:], values[cached:])]
        if cached:
            parts.append(_masked(q, keys[:cached], values[:cached], None))
    return _merge(parts).transpose(0, 1).reshape(tokens, -1).to(q.dtype)


def _window_mask(tokens: int, cached: int, window: int) -> Tensor:
    """``[tokens, cached + tokens]`` bool, true where read."""
    distance = torch.arange(cached, cached + tokens)[:, None] - torch.arange(cached + tokens)[None, :]
    return (distance >= 0) & (distance < window)


def _causal(q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    out, weight = _flash(_heads_first(q), _heads_first(keys), _heads_first(values), is_causal=True, scale=1.0)
    return out[0], weight[0]


def _masked(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    added = None if mask is None else torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
    out, weight = _flash(_heads_first(q), _heads_first(keys), _heads_first(values), attn_mask=added, scale=1.0)
    return out[0], weight[0]


def _merge(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over the union of key sets, from each one's output and log of its softmax's denominator.

    (Log-sum-exp merging, Dao et al., FlashAttention, 2022, section 3.1.) A mask of the whole length is never made.
    """
    if len(parts) == 1:
        return parts[0][0]
    shares = torch.softmax(torch.stack([weight for _, weight in parts]), dim=0)[..., None]
    return sum((out * share for (out, _), share in zip(parts, shares, strict=True)), torch.zeros(()))


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)[None]
