"""The gate of an MLP: ``gelu_tanh(gate) * up``."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.kernels.machine_code import Case
from trtllm_build.kernels.rows import block_of, empty_rows, load_row, store_row
from trtllm_build.quantization.fp8 import Rows, rows_to_fp8, scale_of, values_of


def gelu_gated(gate_up: Tensor, quantized: bool) -> Rows:
    """``gelu_tanh(gate) * up`` of each row, computed in float32 and rounded once.

    Args:
        gate_up: ``[rows, 2 * width]``, contiguous: a row's gate, then its up.
        quantized: give the rows to 8 bits: of the row as rounded to ``gate_up``'s dtype.

    Returns:
        ``[rows, width]`` in ``gate_up``'s dtype, or quantised.
    """
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = empty_rows(gate_up, width, quantized)
    block, warps = block_of(width)
    _gelu_gated[(rows,)](gate_up, values_of(out), scale_of(out), width, block, num_warps=warps)
    return out


def gelu_gated_reference(gate_up: Tensor, quantized: bool) -> Rows:
    """As :func:`gelu_gated`, in torch."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    product = (F.gelu(gate, approximate="tanh") * up).to(gate_up.dtype)
    return rows_to_fp8(product) if quantized else product


@triton.jit
def gelu_tanh(x):
    """Within a kernel: ``x / 2 * (1 + tanh(u))``, ``u = sqrt(2 / pi) * (x + 0.044715 * x**3)`` (arXiv 1606.08415).

    ``(1 + tanh(u)) / 2`` is ``sigmoid(2 * u)``, taken of the side on which its exponential does not overflow.
    """
    twice = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    small = tl.exp(-tl.abs(twice))
    return x * tl.where(twice >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def _gelu_gated(gate_up, out, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gate = load_row(gate_up, 2 * row, columns, inside, WIDTH)
    up = load_row(gate_up, 2 * row + 1, columns, inside, WIDTH)
    store_row((gelu_tanh(gate) * up).to(gate_up.dtype.element_ty), out, scales, row, columns, inside, WIDTH)


def cases(arch: Architecture) -> Iterator[Case]:
    """The dense MLP's and an expert's width, in bfloat16 and to 8 bits."""
    for name, width in {"dense": arch.intermediate_size, "expert": arch.moe_intermediate_size}.items():
        block, warps = block_of(width)
        shape = {"WIDTH": width, "BLOCK": block}
        narrow = {"gate_up": "*bf16", "out": "*fp8e4nv", "scales": "*fp32"}
        plain = {"gate_up": "*bf16", "out": "*bf16"}
        yield Case(f"gelu_gated_{name}", _gelu_gated, plain, shape | {"scales": None}, warps)
        yield Case(f"gelu_gated_{name}_fp8", _gelu_gated, narrow, shape, warps)
