"""The hidden state between the heavy parts of a layer: branches normed and added, and the norms that read the sum.

Each is a row kernel: what the next part reads is made while the row is still in registers. Roundings are those of the
unfused operations, each of which gives its result in the hidden state's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.kernels.machine_code import Case
from trtllm_build.kernels.norm import load_weight, normed, rms_norm_reference
from trtllm_build.kernels.rows import block_of, empty_rows, load_row, store_row
from trtllm_build.network import norm
from trtllm_build.quantization.fp8 import Rows, scale_of, values_of


def after_attention(
    hidden: Tensor,
    attended: Tensor,
    post_attention_norm: Tensor,
    pre_mlp_norm: Tensor,
    pre_experts_norm: Tensor,
    eps: float,
    quantized_mlp: bool,
    quantized_experts: bool,
) -> tuple[Tensor, Rows, Rows]:
    """Attention's output joins the residual; both branches' inputs are normed from it.

    Args:
        hidden: ``[rows, hidden]``, contiguous; what the layer read.
        attended: ``[rows, hidden]``, contiguous; from the output projection, of ``hidden``'s dtype.
        post_attention_norm, pre_mlp_norm, pre_experts_norm: weights ``[hidden]``.
        eps: of the norms.
        quantized_mlp, quantized_experts: give that input to 8 bits.

    Returns:
        Residual in ``hidden``'s dtype, the dense MLP's input and the experts' input, each ``[rows, hidden]``.
    """
    rows, width = hidden.shape
    residual = torch.empty_like(hidden)
    mlp, experts = empty_rows(hidden, width, quantized_mlp), empty_rows(hidden, width, quantized_experts)
    outputs = residual, values_of(mlp), scale_of(mlp), values_of(experts), scale_of(experts)
    norms = post_attention_norm, pre_mlp_norm, pre_experts_norm
    block, warps = block_of(width)
    _after_attention[(rows,)](hidden, attended, *norms, *outputs, width, eps, block, num_warps=warps)
    return residual, mlp, experts


def after_attention_reference(
    hidden: Tensor,
    attended: Tensor,
    post_attention_norm: Tensor,
    pre_mlp_norm: Tensor,
    pre_experts_norm: Tensor,
    eps: float,
    quantized_mlp: bool,
    quantized_experts: bool,
) -> tuple[Tensor, Rows, Rows]:
    """As :func:`after_attention`, in torch."""
    residual = hidden + norm.rms_norm(attended, post_attention_norm, eps)
    mlp = rms_norm_reference(residual, pre_mlp_norm, eps, quantized_mlp)
    return residual, mlp, rms_norm_reference(residual, pre_experts_norm, eps, quantized_experts)


def after_experts(
    residual: Tensor,
    dense: Tensor,
    sparse: Tensor,
    post_mlp_norm: Tensor,
    post_experts_norm: Tensor,
    post_feedforward_norm: Tensor,
    scalar: Tensor,
    eps: float,
    next_norm: Tensor | None = None,
    quantized: bool = False,
) -> tuple[Tensor, Rows | None]:
    """Both branches together, their residual, and the phase's scalar of the layer; then the next layer's first norm.

    Args:
        residual, dense, sparse: ``[rows, hidden]`` of one dtype, contiguous; the branches as they come, not normed.
        post_mlp_norm, post_experts_norm, post_feedforward_norm: weights ``[hidden]``.
        scalar: ``[1]``.
        eps: of the norms.
        next_norm: weight ``[hidden]`` of the norm that reads the result, if that is wanted too.
        quantized: give what that norm gives to 8 bits.

    Returns:
        Hidden state ``[rows, hidden]`` in ``residual``'s dtype; and that, normed with ``next_norm``.
    """
    rows, width = residual.shape
    hidden = torch.empty_like(residual)
    after = None if next_norm is None else empty_rows(residual, width, quantized)
    values, scales = (None, None) if after is None else (values_of(after), scale_of(after))
    norms = post_mlp_norm, post_experts_norm, post_feedforward_norm, next_norm
    block, warps = block_of(width)
    _after_experts[(rows,)](
        residual, dense, sparse, *norms, scalar, hidden, values, scales, width, eps, block, num_warps=warps
    )
    return hidden, after


def after_experts_reference(
    residual: Tensor,
    dense: Tensor,
    sparse: Tensor,
    post_mlp_norm: Tensor,
    post_experts_norm: Tensor,
    post_feedforward_norm: Tensor,
    scalar: Tensor,
    eps: float,
    next_norm: Tensor | None = None,
    quantized: bool = False,
) -> tuple[Tensor, Rows | None]:
    """As :func:`after_experts`, in torch."""
    both = norm.rms_norm(dense, post_mlp_norm, eps) + norm.rms_norm(sparse, post_experts_norm, eps)
    hidden = (residual + norm.rms_norm(both, post_feedforward_norm, eps)) * scalar
    return hidden, None if next_norm is None else rms_norm_reference(hidden, next_norm, eps, quantized)


@triton.jit
def _rounded_norm(x, weight, WIDTH: tl.constexpr, EPS: tl.constexpr, dtype: tl.constexpr):
    """A norm whose result was rounded to the hidden state's dtype, in float32 again."""
    return (normed(x, WIDTH, EPS) * weight).to(dtype).to(tl.float32)


@triton.jit
def _after_attention(
    hidden,
    attended,
    post_attention_norm,
    pre_mlp_norm,
    pre_experts_norm,
    residual,
    mlp,
    mlp_scales,
    experts,
    experts_scales,
    WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    dtype: tl.constexpr = hidden.dtype.element_ty
    # every load before the first sum: a program waits for memory once, and has little else to do
    branch = load_row(attended, row, columns, inside, WIDTH)
    before = load_row(hidden, row, columns, inside, WIDTH)
    by_attention = load_weight(post_attention_norm, columns, inside)
    by_mlp = load_weight(pre_mlp_norm, columns, inside)
    by_experts = load_weight(pre_experts_norm, columns, inside)
    total = (before + _rounded_norm(branch, by_attention, WIDTH, EPS, dtype)).to(dtype)
    store_row(total, residual, None, row, columns, inside, WIDTH)
    wide = normed(total.to(tl.float32), WIDTH, EPS)
    store_row((wide * by_mlp).to(dtype), mlp, mlp_scales, row, columns, inside, WIDTH)
    store_row((wide * by_experts).to(dtype), experts, experts_scales, row, columns, inside, WIDTH)


@triton.jit
def _after_experts(
    residual,
    dense,
    sparse,
    post_mlp_norm,
    post_experts_norm,
    post_feedforward_norm,
    next_norm,
    scalar,
    hidden,
    after,
    after_scales,
    WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    dtype: tl.constexpr = residual.dtype.element_ty
    first = load_row(dense, row, columns, inside, WIDTH)
    second = load_row(sparse, row, columns, inside, WIDTH)
    before = load_row(residual, row, columns, inside, WIDTH)
    by_mlp = load_weight(post_mlp_norm, columns, inside)
    by_experts = load_weight(post_experts_norm, columns, inside)
    by_feedforward = load_weight(post_feedforward_norm, columns, inside)
    by_next = load_weight(next_norm, columns, inside)
    times = tl.load(scalar).to(tl.float32)
    both = _rounded_norm(first, by_mlp, WIDTH, EPS, dtype) + _rounded_norm(second, by_experts, WIDTH, EPS, dtype)
    both = _rounded_norm(both.to(dtype).to(tl.float32), by_feedforward, WIDTH, EPS, dtype)
    total = ((before + both).to(dtype).to(tl.float32) * times).to(dtype)
    store_row(total, hidden, None, row, columns, inside, WIDTH)
    if next_norm is not None:
        rounded = (normed(total.to(tl.float32), WIDTH, EPS) * by_next).to(dtype)
        store_row(rounded, after, after_scales, row, columns, inside, WIDTH)


def cases(arch: Architecture) -> Iterator[Case]:
    """Both, with outputs in bfloat16 and to 8 bits; the last layer's without a norm that follows."""
    block, warps = block_of(arch.hidden_size)
    shape = {"WIDTH": arch.hidden_size, "EPS": arch.rms_norm_eps, "BLOCK": block}
    for suffix, values in {"": "*bf16", "_fp8": "*fp8e4nv"}.items():
        scales = {"mlp_scales", "experts_scales", "after_scales"}
        absent: dict[str, None] = {} if suffix else dict.fromkeys(scales)
        for kernel in (_after_attention, _after_experts):
            names = [n for n in kernel.arg_names if n not in shape and n not in absent]
            types = {
                n: "*fp32" if n in scales else values if n in ("mlp", "experts", "after") else "*bf16" for n in names
            }
            constants = shape | {n: None for n in absent if n in kernel.arg_names}
            yield Case(kernel.__name__[1:] + suffix, kernel, types, constants, warps)
    names = [n for n in _after_experts.arg_names if n not in shape and n not in ("next_norm", "after", "after_scales")]
    alone = shape | dict.fromkeys(("next_norm", "after", "after_scales"))
    yield Case("after_experts_last", _after_experts, dict.fromkeys(names, "*bf16"), alone, warps)
