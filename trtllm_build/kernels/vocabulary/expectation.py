"""Expected embedding of a distribution over the vocabulary, a chunk of the table at a time.

The exponentials of a chunk are relative to the highest logit known when its first product ran, or to their own
sub-chunk's highest where that is higher. :func:`_align` makes them relative to the highest of all so far: it touches
only those that are not, few after the first chunks. Scaling them inside the product instead would spare its launch and
break the pipeline of its tensor cores.

The product has few output tiles (44 of 128 x 128 a canvas), so a chunk is cut in parts along the summed dimension that
each have running sums of their own; they are added up once, at the end, always in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.contract import SUB
from trtllm_build.kernels.machine_code import Case
from trtllm_build.kernels.tile import Tile
from trtllm_build.kernels.vocabulary.logits import LOWEST, TILES, chunking

_ALIGNED = 16  # sub-chunks of a row that one program aligns
_NORMALIZED = 1024  # columns of a row that one program normalizes


def accumulate(
    running: Tensor,
    table: Tensor,
    maxima: Tensor,
    before: Tensor,
    after: Tensor,
    expected: Tensor,
    start: int,
    tile: Tile,
) -> None:
    """Fade ``expected`` and add one chunk's part.

    Args:
        running: the chunk's exponentials ``[rows, chunk]``, relative to the larger of ``before`` and their own
            sub-chunk's highest; 0 past the end of the vocabulary, up to a multiple of 128. Changed in place.
        table: ``[vocab, hidden]``.
        maxima: highest tempered logit of every sub-chunk ``[rows, subs]`` float32.
        before: highest of each row before this chunk ``[rows]`` float32.
        after: the same, this chunk included: written here.
        expected: running sums ``[splits, rows, hidden]`` float32, relative to ``before``; written here, relative to
            ``after``. What it holds does not matter at ``start`` 0.
        start: the chunk's first token.
        tile: of the product.
    """
    rows, chunk = running.shape
    vocab, width = table.shape
    splits = len(expected)
    size = min(chunk, vocab - start)
    span = triton.next_power_of_2(chunk // SUB)
    _align[(rows, triton.cdiv(size, _ALIGNED * SUB))](
        running, maxima, before, after, start, chunk, maxima.shape[1], span, _ALIGNED
    )
    grid = triton.cdiv(rows, tile.rows), triton.cdiv(width, tile.columns), splits
    _expect[grid](
        running, table, before, after, expected, rows, start, vocab, width, chunk, part(chunk, splits),
        tile.rows, tile.columns, tile.depth, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def normalize(expected: Tensor, total: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """``sum over splits of expected [splits, rows, hidden] / total [rows] * scale`` in ``dtype``."""
    splits, rows, width = expected.shape
    out = torch.empty(rows, width, dtype=dtype, device=expected.device)
    _normalize[(rows, triton.cdiv(width, _NORMALIZED))](expected, total, out, rows, scale, splits, width, _NORMALIZED)
    return out


def part(chunk: int, splits: int) -> int:
    """Tokens of a chunk that are summed together: whole sub-chunks."""
    return -(-(chunk // SUB) // splits) * SUB


@triton.jit
def _align(
    running, maxima, before, after, start, CHUNK: tl.constexpr, SUBS: tl.constexpr, SPAN: tl.constexpr,
    BLOCK: tl.constexpr, SUB: tl.constexpr = 128, LOWEST: tl.constexpr = -1e30,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    tops = maxima + row * SUBS + start // SUB
    count = tl.minimum(CHUNK // SUB, SUBS - start // SUB)
    every = tl.arange(0, SPAN)
    old = tl.load(before + row)
    new = tl.maximum(old, tl.max(tl.load(tops + every, mask=every < count, other=LOWEST), 0))
    if tl.program_id(1) == 0:
        tl.store(after + row, new)
    sub = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    fade = tl.exp(tl.maximum(old, tl.load(tops + sub, mask=sub < count, other=LOWEST)) - new)
    at = running + row * CHUNK + (sub[:, None] * SUB + tl.arange(0, SUB)[None, :])
    stale = ((sub < count) & (fade < 1.0))[:, None] & (tl.arange(0, SUB) < SUB)[None, :]
    weights = tl.load(at, mask=stale, other=0.0).to(tl.float32) * fade[:, None]
    tl.store(at, weights.to(running.dtype.element_ty), mask=stale)


@triton.jit
def _expect(
    running, table, before, after, expected, rows, start,
    VOCAB: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PART: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SUB: tl.constexpr = 128,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    near = tl.minimum(row, rows - 1).to(tl.int64)
    fade = tl.exp(tl.load(before + near) - tl.load(after + near))
    at = expected + (tl.program_id(2) * rows + row).to(tl.int64)[:, None] * WIDTH + column[None, :]
    stored = (row < rows)[:, None] & (column < WIDTH)[None, :]
    sums = tl.load(at, mask=stored & (start > 0), other=0.0) * fade[:, None]
    first = tl.program_id(2) * PART
    # whole sub-chunks: weights past the end of the vocabulary are 0, and meet the last embedding there
    last = tl.minimum(first + PART, tl.minimum(CHUNK, (VOCAB - start + SUB - 1) // SUB * SUB))
    depth = tl.arange(0, DEPTH)
    for k in range(first, last, DEPTH):
        weights = tl.load(running + near[:, None] * CHUNK + (k + depth)[None, :])
        token = tl.minimum(start + k + depth, VOCAB - 1).to(tl.int64)
        there = table + token[:, None] * WIDTH + column[None, :]
        if WIDTH % COLUMNS == 0:
            embeddings = tl.load(there)
        else:
            embeddings = tl.load(there, mask=(column < WIDTH)[None, :], other=0.0)
        sums = tl.dot(weights, embeddings, sums, input_precision="ieee")
    tl.store(at, sums, mask=stored)


@triton.jit
def _normalize(expected, total, out, rows, scale, SPLITS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        sums += tl.load(expected + (split * rows + row) * WIDTH + column, mask=column < WIDTH, other=0.0)
    result = sums / tl.load(total + row) * scale
    tl.store(out + row * WIDTH + column, result.to(out.dtype.element_ty), mask=column < WIDTH)


def cases(arch: Architecture) -> Iterator[Case]:
    """The second product with each tile of the pass, and what is before and after it."""
    width, vocab = arch.hidden_size, arch.vocab_size
    bounds = {"before": "*fp32", "after": "*fp32"}
    for tile in TILES:
        name, (chunk, splits) = f"{tile.rows}x{tile.columns}x{tile.stages}", chunking(tile, width)
        sms = (90,) if tile in TILES[2:] else (90, 120, 121)
        align = {"CHUNK": chunk, "SUBS": triton.cdiv(vocab, SUB), "SPAN": triton.next_power_of_2(chunk // SUB)}
        align |= {"BLOCK": _ALIGNED, "SUB": SUB, "LOWEST": LOWEST}
        types = {"running": "*bf16", "maxima": "*fp32", **bounds, "start": "i32"}
        yield Case(f"align_{name}", _align, types, align, sms=sms)
        types = {"running": "*bf16", "table": "*bf16", **bounds, "expected": "*fp32", "rows": "i32", "start": "i32"}
        expect = {"VOCAB": vocab, "WIDTH": width, "CHUNK": chunk, "PART": part(chunk, splits), "SUB": SUB}
        expect |= {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth}
        yield Case(f"expect_{name}", _expect, types, expect, tile.warps, tile.stages, sms)
        types = {"expected": "*fp32", "total": "*fp32", "out": "*bf16", "rows": "i32", "scale": "fp32"}
        normal = {"SPLITS": splits, "WIDTH": width, "BLOCK": _NORMALIZED}
        yield Case(f"normalize_{name}", _normalize, types, normal, sms=sms)
