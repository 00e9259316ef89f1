"""Rows of float8_e4m3fn with a float32 scale each: a weight's output channels, or an activation's tokens.

Weights are scaled once, at build time; activations at run time, each token by its own largest value, so that nothing
is calibrated and no token's rounding depends on another's (ModelOpt's ``FP8_PER_CHANNEL_PER_TOKEN``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.kernels.compile import Case

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max  # 448
SMALLEST = 1e-12  # of a row's largest magnitude: a row of zeros is divided by this


@dataclass(frozen=True)
class Fp8:
    """Quantised rows.

    Args:
        values: ``[..., rows, width]`` float8_e4m3fn.
        scale: ``[..., rows]`` float32; a row's numbers are ``values * scale``.
    """

    values: Tensor
    scale: Tensor


Rows = Tensor | Fp8
"""Rows as they are (bfloat16, float32), or quantised."""


def values_of(rows: Rows) -> Tensor:
    """What is stored for the rows, without their scales."""
    return rows.values if isinstance(rows, Fp8) else rows


def scale_of(rows: Rows) -> Tensor | None:
    """Scales ``[..., rows]``; None for rows that are not quantised."""
    return rows.scale if isinstance(rows, Fp8) else None


def widen(rows: Rows) -> Tensor:
    """The rows' numbers in float32."""
    return rows.values.float() * rows.scale[..., None] if isinstance(rows, Fp8) else rows.float()


def quantize_rows_reference(x: Tensor) -> Fp8:
    """Scale every row of ``x [..., rows, width]`` to its largest magnitude and round to the nearest."""
    wide = x.float()
    scale = wide.abs().amax(-1).clamp_min(SMALLEST) / LARGEST
    return Fp8((wide / scale[..., None]).clamp(-LARGEST, LARGEST).to(DTYPE), scale)


def quantize_rows(x: Tensor) -> Fp8:
    """As :func:`quantize_rows_reference`, for contiguous ``x [rows, width]``."""
    rows, width = x.shape
    out = Fp8(torch.empty_like(x, dtype=DTYPE), torch.empty(rows, dtype=torch.float32, device=x.device))
    _quantize_rows[(rows,)](x, out.values, out.scale, width, triton.next_power_of_2(width))
    return out


@triton.jit
def quantized(wide, LARGEST: tl.constexpr = 448.0, SMALLEST: tl.constexpr = 1e-12):
    """Within a kernel: one row's numbers (float32, masked ones 0) over their scale, and that scale."""
    scale = tl.maximum(tl.max(tl.abs(wide), 0), SMALLEST) / LARGEST
    return tl.minimum(tl.maximum(wide / scale, -LARGEST), LARGEST).to(tl.float8e4nv), scale


@triton.jit
def _quantize_rows(x, values, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    wide = tl.load(x + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    narrow, scale = quantized(wide)
    tl.store(values + row * WIDTH + columns, narrow, mask=inside)
    tl.store(scales + row, scale)


def cases(arch: Architecture) -> Iterator[Case]:
    """The experts' intermediate rows."""
    width = arch.moe_intermediate_size
    yield Case(
        "quantize_rows",
        _quantize_rows,
        {"x": "*bf16", "values": "*fp8e4nv", "scales": "*fp32"},
        {"WIDTH": width, "BLOCK": triton.next_power_of_2(width)},
    )
