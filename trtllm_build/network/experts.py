"""The experts of one layer."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trtllm_build.network.linear import is_large, linear


def gelu_gated(gate: Tensor, up: Tensor) -> Tensor:
    """``gelu_tanh(gate) * up``, the gate of every MLP of this model."""
    return F.gelu(gate, approximate="tanh") * up


def experts(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """Weighted sum of each token's experts.

    Tokens are sorted by expert, so that each expert's weights are read once, where they lie; none is gathered.

    Args:
        x: ``[tokens, hidden]``, already normed.
        gate_up: ``[experts, 2 * width, hidden]``.
        down: ``[experts, hidden, width]``.
        weights: ``[tokens, top_k]`` float32.
        ids: ``[tokens, top_k]`` expert ids.
    """
    top_k = ids.shape[1]
    order = ids.flatten().argsort(stable=True)
    tokens = order // top_k
    counts = torch.bincount(ids.flatten(), minlength=len(down))
    gate, up = _grouped(x[tokens], gate_up, counts).chunk(2, dim=-1)
    scaled = _grouped(gelu_gated(gate, up), down, counts) * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add_(0, tokens, scaled.to(x.dtype))


def _grouped(rows: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Product of each group of rows with its own matrix.

    Args:
        rows: ``[sum(counts), in]``, in the order of the groups.
        weight: ``[groups, out, in]``.
        counts: ``[groups]`` rows of each.
    """
    # torch's grouped product wants rows of whole 16 bytes
    if not is_large(weight[0]) and weight.shape[-1] * weight.element_size() % 16 == 0:
        return F.grouped_mm(rows, weight.transpose(1, 2), offs=counts.cumsum(0).int())
    groups = torch.split(rows, counts.tolist())
    return torch.cat([linear(group, w) for group, w in zip(groups, weight, strict=True) if len(group)])
