"""What kernels share that give each row to one program: the row is read once and stays in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trtllm_build.kernels import fp8
from trtllm_build.quantization.fp8 import DTYPE, Fp8, Rows


def block_of(width: int) -> tuple[int, int]:
    """Numbers a program holds for a row of ``width``, a power of two; and its warps, 16 numbers a thread or fewer."""
    block = triton.next_power_of_2(width)
    return block, max(1, min(8, block // 512))


def empty_rows(like: Tensor, width: int, quantized: bool) -> Rows:
    """Room for a row of ``width`` for each of ``like``'s, on its device, in its dtype or quantised."""
    rows = len(like)
    if not quantized:
        return torch.empty(rows, width, dtype=like.dtype, device=like.device)
    values = torch.empty(rows, width, dtype=DTYPE, device=like.device)
    return Fp8(values, torch.empty(rows, dtype=torch.float32, device=like.device))


@triton.jit
def load_row(x, row, columns, inside, WIDTH: tl.constexpr):
    """Within a kernel: a row of ``x [rows, WIDTH]`` in float32, 0 outside."""
    return tl.load(x + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_row(rounded, out, scales, row, columns, inside, WIDTH: tl.constexpr):
    """Within a kernel: write a row, quantised if there is somewhere to put its scale. Masked numbers are 0."""
    if scales is None:
        tl.store(out + row * WIDTH + columns, rounded, mask=inside)
    else:
        narrow, scale = fp8.quantized(rounded.to(tl.float32))
        tl.store(out + row * WIDTH + columns, narrow, mask=inside)
        tl.store(scales + row, scale)
