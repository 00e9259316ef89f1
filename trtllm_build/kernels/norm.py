"""Root-mean-square norm of every row."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.kernels.machine_code import Case
from trtllm_build.kernels.rows import block_of, empty_rows, load_row, store_row
from trtllm_build.network import norm
from trtllm_build.quantization.fp8 import Rows, rows_to_fp8, scale_of, values_of


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, quantized: bool) -> Rows:
    """``x / sqrt(mean(x^2) + eps) * weight`` over each row, computed in float32.

    Args:
        x: ``[rows, width]``, contiguous.
        weight: ``[width]``, or None for a norm without one.
        eps: added to the mean square.
        quantized: give the rows to 8 bits: of the normed row as rounded to x's dtype, so that they are those of a norm
            followed by :func:`trtllm_build.kernels.fp8.quantize_rows`.

    Returns:
        ``[rows, width]`` in x's dtype, or quantised.
    """
    rows, width = x.shape
    out = empty_rows(x, width, quantized)
    block, warps = block_of(width)
    _rms_norm[(rows,)](x, weight, values_of(out), scale_of(out), width, eps, block, num_warps=warps)
    return out


def rms_norm_reference(x: Tensor, weight: Tensor | None, eps: float, quantized: bool) -> Rows:
    """As :func:`rms_norm`, in torch."""
    normed = norm.rms_norm(x, weight, eps)
    return rows_to_fp8(normed) if quantized else normed


@triton.jit
def normed(wide, WIDTH: tl.constexpr, EPS: tl.constexpr):
    """Within a kernel: one row (float32, masked numbers 0) over its root mean square."""
    return wide * tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + EPS)


@triton.jit
def load_weight(weight, columns, inside):
    """Within a kernel: a norm's weight in float32; 1 for a norm without one."""
    if weight is None:
        return 1.0
    else:  # noqa: RET505  a constexpr condition: the compiler takes one of the two
        return tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _rms_norm(x, weight, out, scales, WIDTH: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    # every load before the first sum: a program waits for memory once, and has little else to do
    wide = load_row(x, row, columns, inside, WIDTH)
    by = load_weight(weight, columns, inside)
    rounded = (normed(wide, WIDTH, EPS) * by).to(x.dtype.element_ty)
    store_row(rounded, out, scales, row, columns, inside, WIDTH)


def cases(arch: Architecture) -> Iterator[Case]:
    """The hidden state, with a weight and without, and to 8 bits."""
    width = arch.hidden_size
    block, warps = block_of(width)
    shape = {"WIDTH": width, "EPS": arch.rms_norm_eps, "BLOCK": block}
    x = {"x": "*bf16"}
    plain, narrow = {"out": "*bf16"}, {"out": "*fp8e4nv", "scales": "*fp32"}
    weight = {"weight": "*bf16"}
    yield Case("rms_norm", _rms_norm, x | weight | plain, shape | {"scales": None}, warps)
    yield Case("rms_norm_unweighted", _rms_norm, x | plain, shape | {"weight": None, "scales": None}, warps)
    yield Case("rms_norm_fp8", _rms_norm, x | weight | narrow, shape, warps)
