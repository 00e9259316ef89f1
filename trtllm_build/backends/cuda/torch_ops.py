"""Torch's own kernels for the heavy operations: an alternative to ours, where they are quicker."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trtllm_build.kernels.experts.dispatch import dispatch
from trtllm_build.kernels.gate import gelu_gated
from trtllm_build.quantization.fp8 import Fp8, Rows, values_of

_scaled_mm: Any = torch._scaled_mm
_scaled_grouped_mm: Any = torch._scaled_grouped_mm


def linear(x: Rows, weight: Rows, dtype: torch.dtype) -> Tensor:
    """As :func:`trtllm_build.kernels.linear.linear`: cuBLAS, or CUTLASS with a scale per row and a column."""
    if isinstance(x, Fp8) and isinstance(weight, Fp8):
        scales = x.scale[:, None], weight.scale[None, :]
        product: Tensor = _scaled_mm(x.values, weight.values.t(), *scales, out_dtype=dtype, use_fast_accum=True)
        return product
    assert isinstance(x, Tensor), "both operands are quantised, or neither"
    assert isinstance(weight, Tensor), "both operands are quantised, or neither"
    return torch.mm(x, weight.t()).to(dtype)


def experts(x: Rows, gate_up: Rows, down: Rows, weights: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """As :func:`trtllm_build.kernels.experts.feed_forward.experts`: CUTLASS's grouped products on gathered rows."""
    top_k = ids.shape[1]
    order, counts = dispatch(ids, len(values_of(down)))
    ends = counts.cumsum(0, dtype=torch.int32)
    tokens = (order // top_k).long()
    gathered = Fp8(_gathered(x.values, tokens), x.scale[tokens]) if isinstance(x, Fp8) else x[tokens]
    inner = gelu_gated(_grouped(gathered, gate_up, ends, dtype), isinstance(down, Fp8))
    parts = _grouped(inner, down, ends, dtype) * weights.flatten()[order.long(), None]
    back = torch.empty_like(parts)
    back[order.long()] = parts
    return back.view(*ids.shape, -1).sum(1, dtype=torch.float32).to(dtype)


def _gathered(values: Tensor, tokens: Tensor) -> Tensor:
    """Rows of 8-bit floats, which torch indexes as bytes only."""
    return values.view(torch.uint8)[tokens].view(values.dtype)


def _grouped(rows: Rows, weight: Rows, ends: Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(rows, Fp8) and isinstance(weight, Fp8):
        product: Tensor = _scaled_grouped_mm(
            rows.values,
            weight.values.transpose(1, 2),
            rows.scale,
            weight.scale,
            offs=ends,
            out_dtype=dtype,
            use_fast_accum=True,
        )
        return product
    assert isinstance(rows, Tensor), "both operands are quantised, or neither"
    assert isinstance(weight, Tensor), "both operands are quantised, or neither"
    return torch.nn.functional.grouped_mm(rows, weight.transpose(1, 2), offs=ends).to(dtype)
