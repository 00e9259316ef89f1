"""Rounding rows to fp8 on the device, a row per program."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.kernels.machine_code import Case
from trtllm_build.quantization import fp8
from trtllm_build.quantization.fp8 import DTYPE, Fp8

quantize_rows_reference = fp8.rows_to_fp8


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
