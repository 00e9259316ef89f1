"""Products with a weight: ``x @ weight.T``, in bfloat16 or in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.kernels.machine_code import SHARED_BYTES, Case
from trtllm_build.kernels.tile import Tile
from trtllm_build.quantization.fp8 import Rows, scale_of, values_of, widen

# The first fits every GPU in either type. A canvas of 256 rows is bound by what the SMs read from L2: a weight's tile
# once for every row tile, a row tile once for every tile of columns; of a narrow weight's (2816 columns) there should
# be enough for 132 SMs all the same. Deeper and wider ones need an H100's shared memory in bfloat16.
TILES = (
    Tile(128, 64, 64, warps=4, stages=4),
    Tile(64, 64, 128, warps=4, stages=3),
    Tile(64, 128, 64, warps=4, stages=4),
    Tile(128, 128, 64, warps=8, stages=3),
    Tile(128, 64, 128, warps=4, stages=4),
    Tile(128, 128, 128, warps=8, stages=3),
    Tile(256, 64, 64, warps=8, stages=4),
    Tile(256, 32, 128, warps=8, stages=3),
)


def linear(x: Rows, weight: Rows, dtype: torch.dtype, tile: Tile = TILES[0]) -> Tensor:
    """``x @ weight.T``, summed in float32; scales are applied to the sum.

    Args:
        x: ``[rows, in]``, contiguous.
        weight: ``[out, in]``, contiguous; quantised when ``x`` is, otherwise of ``x``'s dtype.
        dtype: of the result.
        tile: how the product is cut up. A row's result depends on it, but not on the other rows.

    Returns:
        ``[rows, out]``.
    """
    values, weights = values_of(x), values_of(weight)
    rows, width = values.shape
    columns = len(weights)
    out = torch.empty(rows, columns, dtype=dtype, device=values.device)
    grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns),)
    _linear[grid](
        values,
        weights,
        scale_of(x),
        scale_of(weight),
        out,
        rows,
        columns,
        width,
        tile.rows,
        tile.columns,
        tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


def linear_reference(x: Rows, weight: Rows, dtype: torch.dtype, _tile: Tile = TILES[0]) -> Tensor:
    """As :func:`linear`, in torch."""
    return (widen(x) @ widen(weight).T).to(dtype)


@triton.jit(do_not_specialize=["rows"])  # one kernel for every number of rows, compiled before the first request
def _linear(
    x,
    weight,
    x_scale,
    weight_scale,
    out,
    rows,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    # row tiles of the same columns run next to one another, so that all but the first find the weight in L2
    row_tiles = tl.cdiv(rows, ROWS)
    row = (tl.program_id(0) % row_tiles) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) // row_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    # past the end the last one is read again, which needs no mask; it is not stored
    x += tl.minimum(row, rows - 1).to(tl.int64)[:, None] * IN + depth[None, :]
    weight += tl.minimum(column, OUT - 1).to(tl.int64)[None, :] * IN + depth[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, IN, DEPTH):
        if IN % DEPTH == 0:
            a = tl.load(x)
            b = tl.load(weight)
        else:
            a = tl.load(x, mask=depth[None, :] < IN - start, other=0.0)
            b = tl.load(weight, mask=depth[:, None] < IN - start, other=0.0)
        if x_scale is None:
            total = tl.dot(a, b, total, input_precision="ieee")  # which concerns float32 alone
        else:
            # Hopper sums products of 8 bits to 14 bits or so: each tile's sum is added to the others' in float32
            # (arXiv 2412.19437, section 3.3.2)
            total += tl.dot(a, b)
        x += DEPTH
        weight += DEPTH
    if x_scale is not None:
        total *= tl.load(x_scale + tl.minimum(row, rows - 1))[:, None]
        total *= tl.load(weight_scale + tl.minimum(column, OUT - 1))[None, :]
    inside = (row < rows)[:, None] & (column < OUT)[None, :]
    out += row.to(tl.int64)[:, None] * OUT + column[None, :]
    tl.store(out, total.to(out.dtype.element_ty), mask=inside)


def cases(arch: Architecture) -> Iterator[Case]:
    """Every tile in both types at the output projection of a sliding layer, and a ragged depth: that of ``down``."""
    out, width = arch.hidden_size, arch.num_attention_heads * arch.head_dim
    for size, kind in ((2, "bf16"), (1, "fp8e4nv")):
        types = {"x": f"*{kind}", "weight": f"*{kind}", "out": "*bf16", "rows": "i32"}
        scales = {"x_scale": "*fp32", "weight_scale": "*fp32"}
        types, absent = (types | scales, {}) if size == 1 else (types, dict.fromkeys(scales))
        for t in TILES:
            cut = {"OUT": out, "IN": width, "ROWS": t.rows, "COLUMNS": t.columns, "DEPTH": t.depth}
            name = f"linear_{kind}_{t.rows}x{t.columns}x{t.depth}"
            needed = (t.rows + t.columns) * t.depth * size * t.stages
            sms = tuple(sm for sm, most in SHARED_BYTES.items() if needed <= most)
            yield Case(name, _linear, types, cut | absent, t.warps, t.stages, sms)
            if arch.intermediate_size % t.depth:
                ragged = cut | absent | {"IN": arch.intermediate_size}
                yield Case(f"{name}_ragged", _linear, types, ragged, t.warps, t.stages, sms)
