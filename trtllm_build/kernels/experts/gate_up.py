"""First half of the experts: ``gelu_tanh(gate) * up`` of every assignment, sorted by expert.

At one canvas an expert has about 16 tokens, so that reading weights decides. They are the left operand, whose rows the
tensor cores take 64 at a time; tokens are the right one, which may be as narrow as 16.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.kernels.experts.dispatch import grouped_cases, grouped_constants, most_row_tiles, row_tile
from trtllm_build.kernels.machine_code import Case
from trtllm_build.kernels.tile import Tile
from trtllm_build.quantization.fp8 import Rows, scale_of, values_of

TILES = (  # columns of the gate, and as many of the up projection
    Tile(rows=32, columns=64, depth=128),
    Tile(rows=16, columns=64, depth=128),
    Tile(rows=32, columns=64, depth=64),
    Tile(rows=16, columns=64, depth=64),
    Tile(rows=64, columns=64, depth=128),
    Tile(rows=128, columns=64, depth=128, warps=8),
)


def experts_gate_up(
    x: Rows, gate_up: Rows, order: Tensor, counts: Tensor, dtype: torch.dtype, tile: Tile = TILES[0]
) -> Tensor:
    """``gelu_tanh(gate) * up`` of every assignment.

    Args:
        x: ``[tokens, hidden]``, quantised where ``gate_up`` is.
        gate_up: ``[experts, 2 * width, hidden]``, the gate's rows first.
        order, counts: of :func:`trtllm_build.kernels.experts.dispatch.dispatch`.
        dtype: of the result.
        tile: how to cut the product up.

    Returns:
        ``[tokens * top_k, width]`` in the order of ``order``.
    """
    values = values_of(gate_up)
    number, width, hidden = values.shape[0], values.shape[1] // 2, values.shape[2]
    out = torch.empty(len(order), width, dtype=dtype, device=order.device)
    _gate_up[most_row_tiles(len(order), number, tile.rows), triton.cdiv(width, tile.columns)](
        values_of(x),
        scale_of(x),
        values,
        scale_of(gate_up),
        order,
        counts,
        out,
        **grouped_constants(number, hidden, width, tile),
        TOP_K=len(order) // len(values_of(x)),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


@triton.jit
def _gate_up(
    x,
    x_scale,
    weight,
    weight_scale,
    order,
    counts,
    out,
    EXPERTS: tl.constexpr,
    EXPERTS_BLOCK: tl.constexpr,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    TOP_K: tl.constexpr,
):
    expert, first, end = row_tile(tl.program_id(0), counts, EXPERTS, EXPERTS_BLOCK, ROWS)
    if expert >= EXPERTS:
        return
    rows = first + tl.arange(0, ROWS)
    tokens = (tl.load(order + tl.minimum(rows, end - 1)) // TOP_K).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    # past the last row or column that one is read again: only what is written needs a mask
    channels = expert.to(tl.int64) * (2 * WIDTH) + tl.minimum(columns, WIDTH - 1)
    depth = tl.arange(0, DEPTH)
    gates = weight + channels[:, None] * HIDDEN + depth[None, :]
    ups = gates + WIDTH * HIDDEN
    inputs = x + tokens[None, :] * HIDDEN + depth[:, None]
    gate = tl.zeros([COLUMNS, ROWS], dtype=tl.float32)
    up = tl.zeros([COLUMNS, ROWS], dtype=tl.float32)
    for start in range(0, HIDDEN, DEPTH):
        left = depth < HIDDEN - start
        taken = tl.load(inputs + start, mask=left[:, None], other=0.0)
        gate_part = tl.dot(tl.load(gates + start, mask=left[None, :], other=0.0), taken, input_precision="ieee")
        up_part = tl.dot(tl.load(ups + start, mask=left[None, :], other=0.0), taken, input_precision="ieee")
        # Hopper adds fp8 products with 14 bits, so that sums longer than DEPTH are kept in float32 by ordinary adds
        gate += gate_part
        up += up_part
    if weight_scale is not None:
        token_scale = tl.load(x_scale + tokens)[None, :]
        gate *= tl.load(weight_scale + channels)[:, None] * token_scale
        up *= tl.load(weight_scale + channels + WIDTH)[:, None] * token_scale
    # gelu_tanh: 1 + tanh(u) = 2 sigmoid(2 u), with u = sqrt(2 / pi) * (gate + 0.044715 gate ** 3)
    gated = gate / (1 + tl.exp(-1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))) * up
    target = out + rows.to(tl.int64)[None, :] * WIDTH + columns[:, None]
    tl.store(target, gated.to(out.dtype.element_ty), mask=(rows < end)[None, :] & (columns < WIDTH)[:, None])


def cases(arch: Architecture) -> Iterator[Case]:
    """Every tile, in fp8 and in bfloat16."""
    yield from grouped_cases("experts_gate_up", _gate_up, TILES, arch, {}, {"TOP_K": arch.top_k_experts})
