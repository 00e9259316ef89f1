"""The router: which experts each token goes to, and with what weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.kernels.machine_code import Case
from trtllm_build.kernels.tile import Tile
from trtllm_build.network.norm import rms_norm

# 16 rows are the fewest a matrix product takes: a canvas of 256 makes 16 blocks of them, and more programs come of
# giving each only some of the experts. With 2 warps a thread's part of the scale is 4 bytes, the least that can be
# copied ahead of its use; with more it would be waited for in every turn of the loop
TILES = (
    Tile(16, 32, 128, warps=2, stages=4),
    Tile(16, 16, 128, warps=2, stages=4),
    Tile(16, 64, 128, warps=2, stages=4),
    Tile(64, 64, 64, warps=4, stages=4),
)


def route(
    residual: Tensor,
    scale: Tensor,
    projection: Tensor,
    per_expert_scale: Tensor,
    top_k: int,
    eps: float,
    tile: Tile = TILES[0],
) -> tuple[Tensor, Tensor]:
    """The ``top_k`` likeliest experts of every token.

    One launch for the logits and one to choose, since every expert's logit has to be there first. The norm's factor and
    ``hidden**-0.5`` are applied to the product, in float32, not to the row before it: fewer
    roundings than the network's, and the row is read once. Only the chosen experts' probabilities are computed, since
    the softmax's own sum cancels when they are divided by theirs.

    Args:
        residual: ``[rows, hidden]``, contiguous; not normed.
        scale: ``[hidden]``.
        projection: ``[experts, hidden]``, contiguous; products are of numbers of its dtype.
        per_expert_scale: ``[experts]``.
        top_k: experts per token.
        eps: of the norm.
        tile: how the product is cut up; ``columns`` are experts.

    Returns:
        Weights ``[rows, top_k]`` float32, which sum to 1 before ``per_expert_scale``, and ids ``[rows, top_k]`` int32,
        likeliest first and of equals the lower first. Ids are valid even where the residual is not finite.
    """
    rows, width = residual.shape
    experts = len(projection)
    logits = torch.empty(rows, experts, dtype=torch.float32, device=residual.device)
    weights = torch.empty(rows, top_k, dtype=torch.float32, device=residual.device)
    ids = torch.empty(rows, top_k, dtype=torch.int32, device=residual.device)
    cut = tile.rows, tile.columns, tile.depth
    _score[(triton.cdiv(rows, tile.rows), triton.cdiv(experts, tile.columns))](
        residual,
        scale,
        projection,
        logits,
        rows,
        width,
        experts,
        eps,
        *cut,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    padded = triton.next_power_of_2(experts), triton.next_power_of_2(top_k)
    _choose[(rows,)](logits, per_expert_scale, weights, ids, experts, top_k, *padded, num_warps=1)
    return weights, ids


def route_reference(
    residual: Tensor,
    scale: Tensor,
    projection: Tensor,
    per_expert_scale: Tensor,
    top_k: int,
    eps: float,
    _tile: Tile = TILES[0],
) -> tuple[Tensor, Tensor]:
    """As :func:`route`, in torch."""
    routed = rms_norm(residual.float(), None, eps) * scale.float() * residual.shape[-1] ** -0.5
    probabilities = torch.softmax(routed @ projection.float().T, dim=-1)
    weights, ids = (t[:, :top_k] for t in probabilities.sort(dim=-1, descending=True, stable=True))
    return weights / weights.sum(-1, keepdim=True) * per_expert_scale.float()[ids], ids.int()


@triton.jit(do_not_specialize=["rows"])
def _score(
    residual,
    scale,
    projection,
    logits,
    rows,
    WIDTH: tl.constexpr,
    EXPERTS: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    expert = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    # past the end the last one is read again; it is not stored
    residual += tl.minimum(row, rows - 1)[:, None] * WIDTH + depth[None, :]
    projection += tl.minimum(expert, EXPERTS - 1)[None, :] * WIDTH + depth[:, None]
    squares = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, WIDTH, DEPTH):
        inside = depth < WIDTH - start
        x = tl.load(residual, mask=inside[None, :], other=0.0).to(tl.float32)
        by = tl.load(scale + start + depth, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(projection, mask=inside[:, None], other=0.0)
        squares += tl.sum(x * x, 1)
        total = tl.dot((x * by[None, :]).to(b.dtype), b, total, input_precision="ieee")
        residual += DEPTH
        projection += DEPTH
    factor = tl.rsqrt(squares / WIDTH + EPS) * WIDTH**-0.5
    out = logits + row[:, None] * EXPERTS + expert[None, :]
    tl.store(out, total * factor[:, None], mask=(row < rows)[:, None] & (expert < EXPERTS)[None, :])


@triton.jit
def _choose(
    logits,
    per_expert_scale,
    weights,
    ids,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
    PLACES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BLOCK)
    x = tl.load(logits + row * EXPERTS + expert, mask=expert < EXPERTS, other=float("-inf"))
    place = tl.arange(0, PLACES)
    chosen = tl.zeros((PLACES,), tl.int32)
    exponentials = tl.zeros((PLACES,), tl.float32)
    top = tl.max(x, 0)
    for k in tl.static_range(TOP_K):
        highest = tl.max(x, 0)
        # no number equals NaN: the last expert then, so that whoever reads the ids stays inside the experts
        first = tl.min(tl.where(x == highest, expert, EXPERTS - 1), 0)
        chosen = tl.where(place == k, first, chosen)
        exponentials = tl.where(place == k, tl.exp(highest - top), exponentials)
        x = tl.where(expert == first, float("-inf"), x)
    found = exponentials / tl.sum(exponentials, 0) * tl.load(per_expert_scale + chosen).to(tl.float32)
    tl.store(weights + row * TOP_K + place, found, mask=place < TOP_K)
    tl.store(ids + row * TOP_K + place, chosen, mask=place < TOP_K)


def cases(arch: Architecture) -> Iterator[Case]:
    """Every tile of the logits, and the choice."""
    types = dict.fromkeys(("residual", "scale", "projection"), "*bf16") | {"logits": "*fp32", "rows": "i32"}
    shape = {"WIDTH": arch.hidden_size, "EXPERTS": arch.num_experts, "EPS": arch.rms_norm_eps}
    for t in TILES:
        cut = {"ROWS": t.rows, "COLUMNS": t.columns, "DEPTH": t.depth}
        name = f"route_score_{t.rows}x{t.columns}x{t.depth}"
        yield Case(name, _score, types, shape | cut, t.warps, t.stages)
    types = {"logits": "*fp32", "per_expert_scale": "*bf16", "weights": "*fp32", "ids": "*i32"}
    shape = {"EXPERTS": arch.num_experts, "TOP_K": arch.top_k_experts}
    padded = {
        "BLOCK": triton.next_power_of_2(arch.num_experts),
        "PLACES": triton.next_power_of_2(arch.top_k_experts),
    }
    yield Case("route_choose", _choose, types, shape | padded, warps=1)
