"""Router and experts of one layer."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trtllm_build.network.norm import rms_norm
from trtllm_build.network.weights import LayerWeights


def gelu_gated(gate: Tensor, up: Tensor) -> Tensor:
    """``gelu_tanh(gate) * up``, the gate of every MLP of this model."""
    return F.gelu(gate, approximate="tanh") * up


def mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Gated MLP: ``[tokens, hidden] -> [tokens, hidden]``."""
    return F.linear(gelu_gated(F.linear(x, gate), F.linear(x, up)), down)


def route(residual: Tensor, w: LayerWeights, top_k: int, eps: float) -> tuple[Tensor, Tensor]:
    """Experts of each token, from the raw residual.

    Returns:
        Weights ``[tokens, top_k]`` float32 (they sum to 1 before ``per_expert_scale``) and expert ids
        ``[tokens, top_k]``.
    """
    x = rms_norm(residual, None, eps) * w.router_scale * residual.shape[-1] ** -0.5
    probabilities = torch.softmax(F.linear(x, w.router_proj), dim=-1, dtype=torch.float32)
    weights, ids = torch.topk(probabilities, top_k, dim=-1)
    weights = weights / weights.sum(-1, keepdim=True)
    return weights * w.per_expert_scale[ids], ids


def experts(x: Tensor, w: LayerWeights, weights: Tensor, ids: Tensor) -> Tensor:
    """Weighted sum of each token's experts.

    Tokens are sorted by expert, so that each expert's weights are read once, as a view; none is gathered.

    Args:
        x: ``[tokens, hidden]``, already normed.
        w: the layer's weights.
        weights: ``[tokens, top_k]`` float32.
        ids: ``[tokens, top_k]`` expert ids.
    """
    top_k = ids.shape[1]
    order = ids.flatten().argsort(stable=True)
    tokens = order // top_k
    rows = x[tokens]
    counts = torch.bincount(ids.flatten(), minlength=w.experts_down.shape[0]).tolist()
    parts, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            gate, up = F.linear(rows[start : start + count], w.experts_gate_up[expert]).chunk(2, dim=-1)
            parts.append(F.linear(gelu_gated(gate, up), w.experts_down[expert]))
            start += count
    scaled = torch.cat(parts) * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add_(0, tokens, scaled.to(x.dtype))
