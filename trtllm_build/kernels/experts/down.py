"""Second half of the experts: back to the hidden width, weighted by the router, and summed for each token."""

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

TILES = (
    Tile(rows=32, columns=128, depth=128),
    Tile(rows=16, columns=128, depth=128),
    Tile(rows=32, columns=128, depth=64),
    Tile(rows=16, columns=128, depth=64),
    Tile(rows=64, columns=128, depth=128),
    Tile(rows=128, columns=128, depth=128, warps=8),
)
_COMBINED = 1024  # columns of a program


def experts_down(
    inner: Rows,
    down: Rows,
    weights: Tensor,
    order: Tensor,
    counts: Tensor,
    dtype: torch.dtype,
    tile: Tile = TILES[0],
) -> Tensor:
    """Weighted sum of each token's experts, from what they have between their two products.

    Every assignment has a row of its own for its part of the sum, and a second kernel adds them in the router's order:
    atomic adds would round differently from run to run.

    Args:
        inner: ``[tokens * top_k, width]`` in the order of ``order``, quantised where ``down`` is.
        down: ``[experts, hidden, width]``.
        weights: ``[tokens, top_k]`` float32.
        order, counts: of :func:`trtllm_build.kernels.experts.dispatch.dispatch`.
        dtype: of the result and of its parts, which are added in float32.
        tile: how to cut the product up.

    Returns:
        ``[tokens, hidden]``.
    """
    values = values_of(down)
    number, hidden, width = values.shape
    tokens, top_k = weights.shape
    parts = torch.empty(tokens * top_k, hidden, dtype=dtype, device=order.device)
    _down[most_row_tiles(len(order), number, tile.rows), triton.cdiv(hidden, tile.columns)](
        values_of(inner),
        scale_of(inner),
        values,
        scale_of(down),
        weights,
        order,
        counts,
        parts,
        **grouped_constants(number, hidden, width, tile),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    out = parts.new_empty(tokens, hidden)
    _combine[(tokens, triton.cdiv(hidden, _COMBINED))](parts, out, top_k, hidden, _COMBINED)
    return out


@triton.jit
def _down(
    x,
    x_scale,
    weight,
    weight_scale,
    router,
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
):
    expert, first, end = row_tile(tl.program_id(0), counts, EXPERTS, EXPERTS_BLOCK, ROWS)
    if expert >= EXPERTS:
        return
    rows = first + tl.arange(0, ROWS)
    read = tl.minimum(rows, end - 1)
    assignments = tl.load(order + read).to(tl.int64)
    factor = tl.load(router + assignments)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    channels = expert.to(tl.int64) * HIDDEN + tl.minimum(columns, HIDDEN - 1)
    depth = tl.arange(0, DEPTH)
    weights = weight + channels[:, None] * WIDTH + depth[None, :]
    inputs = x + read.to(tl.int64)[None, :] * WIDTH + depth[:, None]
    sum = tl.zeros([COLUMNS, ROWS], dtype=tl.float32)
    for start in range(0, WIDTH, DEPTH):
        left = depth < WIDTH - start
        taken = tl.load(inputs + start, mask=left[:, None], other=0.0)
        sum += tl.dot(tl.load(weights + start, mask=left[None, :], other=0.0), taken, input_precision="ieee")
    if weight_scale is not None:
        factor *= tl.load(x_scale + read)
        sum *= tl.load(weight_scale + channels)[:, None]
    target = out + assignments[None, :] * HIDDEN + columns[:, None]
    mask = (rows < end)[None, :] & (columns < HIDDEN)[:, None]
    tl.store(target, (sum * factor[None, :]).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _combine(parts, out, TOP_K: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    sum = tl.zeros([BLOCK], dtype=tl.float32)
    for k in tl.static_range(TOP_K):
        sum += tl.load(parts + (token * TOP_K + k) * HIDDEN + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * HIDDEN + columns, sum.to(out.dtype.element_ty), mask=inside)


def cases(arch: Architecture) -> Iterator[Case]:
    """Every tile, in fp8 and in bfloat16; and the sum."""
    yield from grouped_cases("experts_down", _down, TILES, arch, {"router": "*fp32"}, {})
    constants = {"TOP_K": arch.top_k_experts, "HIDDEN": arch.hidden_size, "BLOCK": _COMBINED}
    yield Case("experts_combine", _combine, {"parts": "*bf16", "out": "*bf16"}, constants)
