"""Which rows each expert serves: assignments sorted by expert, without the host being asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.kernels.machine_code import SHARED_BYTES, Case
from trtllm_build.kernels.tile import Tile

_BLOCK, _WARPS = 2048, 8  # assignments read at a time: all of one canvas with 8 experts per token


def dispatch_reference(ids: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Sort assignments by expert.

    Args:
        ids: ``[tokens, top_k]`` expert ids; entry ``(t, k)`` is assignment ``t * top_k + k``.
        experts: how many there are.

    Returns:
        Assignments ``[tokens * top_k]`` int32 in the order of their experts, ascending within one; and how many each
        expert has, ``[experts]`` int32.
    """
    flat = ids.flatten().long()
    return flat.argsort(stable=True).int(), torch.bincount(flat, minlength=experts).int()


def dispatch(ids: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """As :func:`dispatch_reference`, for contiguous ids."""
    order = torch.empty(ids.numel(), dtype=torch.int32, device=ids.device)
    counts = torch.empty(experts, dtype=torch.int32, device=ids.device)
    _dispatch[(experts,)](ids, order, counts, ids.numel(), _BLOCK, num_warps=_WARPS)
    return order, counts


def most_row_tiles(assignments: int, experts: int, rows: int) -> int:
    """Most tiles of ``rows`` rows that the experts can need, however the router divides the assignments."""
    return (assignments + min(assignments, experts) * (rows - 1)) // rows


def grouped_constants(experts: int, hidden: int, width: int, tile: Tile) -> dict[str, int]:
    """What both of the experts' products are specialised for."""
    sizes = {"EXPERTS": experts, "EXPERTS_BLOCK": triton.next_power_of_2(experts), "HIDDEN": hidden, "WIDTH": width}
    return sizes | {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth}


@triton.jit
def row_tile(program, counts, EXPERTS: tl.constexpr, EXPERTS_BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Within a kernel: expert of a row tile (``EXPERTS`` or more: there is no such tile), its first row and its end.

    Every program works this out from the counts: a table of tiles would be one more kernel to wait for. Rows are
    those of the sorted order. Tiles of one expert follow one another, so that programs which read the same weights
    run side by side and all but the first find them in the L2 cache.
    """
    experts = tl.arange(0, EXPERTS_BLOCK)
    count = tl.load(counts + experts, mask=experts < EXPERTS, other=0)
    tiles = (count + ROWS - 1) // ROWS
    expert = tl.sum((tl.cumsum(tiles, 0) <= program).to(tl.int32), 0)
    earlier = experts < expert
    start = tl.sum(tl.where(earlier, count, 0), 0)
    end = start + tl.sum(tl.where(experts == expert, count, 0), 0)
    return expert, start + (program - tl.sum(tl.where(earlier, tiles, 0), 0)) * ROWS, end


@triton.jit
def _dispatch(ids, order, counts, assignments, BLOCK: tl.constexpr):
    # One expert per program. Reading every id twice, out of the cache, is cheaper than two kernels or atomics, whose
    # order would change from run to run.
    expert = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    lower = tl.zeros([BLOCK], dtype=tl.int32)
    for start in range(0, assignments, BLOCK):
        found = tl.load(ids + start + lanes, mask=start + lanes < assignments, other=expert)
        lower += (found < expert).to(tl.int32)
    first = tl.sum(lower, 0)
    position = first
    for start in range(0, assignments, BLOCK):
        inside = start + lanes < assignments
        mine = inside & (tl.load(ids + start + lanes, mask=inside, other=0) == expert)
        taken = mine.to(tl.int32)
        tl.store(order + position + tl.cumsum(taken, 0) - taken, start + lanes, mask=mine)
        position += tl.sum(taken, 0)
    tl.store(counts + expert, position - first)


def cases(_arch: Architecture) -> Iterator[Case]:
    """The router's int32 ids."""
    types = {"ids": "*i32", "order": "*i32", "counts": "*i32", "assignments": "i32"}
    yield Case("dispatch", _dispatch, types, {"BLOCK": _BLOCK}, warps=_WARPS)


def grouped_cases(
    name: str, kernel: Any, tiles: Sequence[Tile], arch: Architecture, types: dict[str, str], constants: dict[str, int]
) -> Iterator[Case]:
    """Every tile of one of the experts' products, in fp8 and in bfloat16; the largest in bfloat16 for Hopper only."""
    shape = arch.num_experts, arch.hidden_size, arch.moe_intermediate_size
    for kind, scale in (("fp8e4nv", "*fp32"), ("bf16", None)):
        scales = {"x_scale": scale, "weight_scale": scale}
        given = {n: t for n, t in scales.items() if t is not None}
        absent = {n: None for n, t in scales.items() if t is None}
        pointers = {"x": f"*{kind}", "weight": f"*{kind}", "order": "*i32", "counts": "*i32", "out": "*bf16"}
        for tile in tiles:
            yield Case(
                f"{name} {kind} {tile.rows}x{tile.columns}x{tile.depth}",
                kernel,
                pointers | given | types,
                grouped_constants(*shape, tile) | constants | absent,
                tile.warps,
                tile.stages,
                sms=(90,) if kind == "bf16" and tile.rows == 128 else tuple(SHARED_BYTES),
            )
