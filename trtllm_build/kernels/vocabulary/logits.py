"""First product of the vocabulary pass: hidden states times the embeddings of a chunk.

From a tile's accumulators come four numbers per row and sub-chunk of 128 tokens, which is all that argmax, entropy and
sample need, and the exponentials that the second product reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import triton
import triton.language as tl
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.contract import SUB
from trtllm_build.kernels.machine_code import Case
from trtllm_build.kernels.tile import Tile

LOWEST = -1e30  # below every logit, and still a number: its difference to itself is 0
# 3 stages of 128 x 128 x 64 are what fits all GPUs; what needs more shared memory is for H100 and H200
TILES = (Tile(128, 128, 64, 8, 3), Tile(64, 128, 64, 4, 4), Tile(128, 128, 64, 8, 4), Tile(128, 256, 64, 8, 3))
_WAVE = 132  # multiprocessors of an H100 or H200
_CANVAS = 256  # rows that shall fill them


def chunking(tile: Tile, width: int) -> tuple[int, int]:
    """Tokens of a chunk, and parts of it that are summed apart in the second product, for hidden size ``width``.

    Of the tile alone, never of the number of rows: sums must not depend on who shares the call.
    """
    blocks = -(-_CANVAS // tile.rows)
    splits = _WAVE // (blocks * -(-width // tile.columns))
    return _WAVE // blocks * tile.columns, max(1, splits)


def score(
    hidden: Tensor,
    table: Tensor,
    inverse_temperature: Tensor,
    banned: Tensor | None,
    highest: Tensor,
    numbers: Sequence[Tensor],
    leading: Tensor,
    running: Tensor | None,
    start: int,
    chunk: int,
    cap: float,
    tile: Tile,
) -> None:
    """One chunk of the vocabulary.

    Args:
        hidden, table, inverse_temperature, banned, cap: as in :mod:`trtllm_build.kernels.vocabulary.read_out`.
        highest: highest tempered logit of each row in earlier chunks ``[rows]`` float32.
        numbers: of each sub-chunk, ``[rows, subs]`` float32, written here: its highest tempered logit, the sum of
            exponentials relative to that, and their sum weighted with how far each logit is below it.
        leading: token id of that highest logit ``[rows, subs]`` int32, written here.
        running: the chunk's exponentials ``[rows, chunk]``, relative to the larger of ``highest`` and their own
            sub-chunk's highest, written here; None when no second product follows.
        start, chunk: first token of the chunk and its size.
        tile: of the product.
    """
    rows, width = hidden.shape
    vocab = len(table)
    count = 0 if banned is None else banned.shape[1]
    # row tiles first: blocks that run together share a piece of the table
    grid = triton.cdiv(rows, tile.rows), triton.cdiv(min(chunk, vocab - start), tile.columns)
    _scores[grid](
        hidden, table, inverse_temperature, banned, highest, *numbers, leading, running,
        rows, start, cap, vocab, width, count, chunk, tile.rows, tile.columns, tile.depth,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


@triton.jit
def tempered(products, cap, inverse):
    """``cap * tanh(products / cap) * inverse`` to 2e-7 of the cap: ``tanh.approx`` is good to 2**-11 only."""
    fade = tl.exp(tl.abs(products) * (-2.0 / cap))
    size = (1.0 - fade) / (1.0 + fade) * cap
    return tl.where(products < 0, -size, size) * inverse


@triton.jit
def inadmissible(logits, token, banned, row, first, BANNED: tl.constexpr, COLUMNS: tl.constexpr):
    """``logits [rows, tokens]`` with minus infinity for what ``banned [all rows, BANNED]`` rules out.

    Few tiles hold a banned token; the others are not compared with each.
    """
    hits = tl.zeros_like(row)
    for i in range(BANNED):
        index = tl.load(banned + row * BANNED + i) - first
        hits |= ((index >= 0) & (index < COLUMNS)).to(hits.dtype)
    if tl.max(hits, 0) > 0:
        for i in range(BANNED):
            index = tl.load(banned + row * BANNED + i)
            logits = tl.where(token[None, :] == index[:, None], float("-inf"), logits)
    return logits


@triton.jit
def _scores(
    hidden, table, inverse, banned, highest, maxima, sums, below, leading, running, rows, start, cap,
    VOCAB: tl.constexpr, WIDTH: tl.constexpr, BANNED: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    SUB: tl.constexpr = 128, LOWEST: tl.constexpr = -1e30,
):  # fmt: skip
    """First product of a tile: statistics of each row and sub-chunk, and exponentials where ``running`` is given."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = start + tl.program_id(1) * COLUMNS
    token = first + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    # rows past the end read the last one again, which needs no mask; they are not stored, such tokens have no weight
    near = tl.minimum(row, rows - 1).to(tl.int64)
    left = hidden + near[:, None] * WIDTH + depth[None, :]
    right = table + tl.minimum(token, VOCAB - 1).to(tl.int64)[None, :] * WIDTH + depth[:, None]
    products = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, WIDTH, DEPTH):
        if WIDTH % DEPTH == 0:
            x, e = tl.load(left + k), tl.load(right + k)
        else:
            x = tl.load(left + k, mask=depth[None, :] < WIDTH - k, other=0.0)
            e = tl.load(right + k, mask=depth[:, None] < WIDTH - k, other=0.0)
        products = tl.dot(x, e, products, input_precision="ieee")
    logits = tempered(products, cap, tl.load(inverse + near)[:, None])
    logits = tl.where(token[None, :] < VOCAB, logits, float("-inf"))
    if BANNED > 0:
        logits = inadmissible(logits, token, banned, near, first, BANNED, COLUMNS)

    SUBS: tl.constexpr = (VOCAB + SUB - 1) // SUB
    PARTS: tl.constexpr = COLUMNS // SUB
    logits = tl.reshape(logits, (ROWS, PARTS, SUB))
    top = tl.maximum(tl.max(logits, 2), LOWEST)  # a sub-chunk of banned tokens: still a number
    place = tl.min(tl.where(logits == top[:, :, None], tl.arange(0, SUB)[None, None, :], SUB - 1), 2)
    exponentials = tl.exp(logits - top[:, :, None])
    sub = first // SUB + tl.arange(0, PARTS)
    at = row.to(tl.int64)[:, None] * SUBS + sub[None, :]
    stored = (row < rows)[:, None] & (sub < SUBS)[None, :]
    tl.store(maxima + at, top, mask=stored)
    tl.store(sums + at, tl.sum(exponentials, 2), mask=stored)
    # a token that is ruled out has no weight, and infinitely little of it
    distance = tl.where(logits == float("-inf"), 0.0, top[:, :, None] - logits)
    tl.store(below + at, tl.sum(exponentials * distance, 2), mask=stored)
    tl.store(leading + at, (sub * SUB)[None, :] + place, mask=stored)
    if running is not None:
        # relative to the highest so far: after the first chunks, that is what the whole chunk will be relative to
        fade = tl.exp(top - tl.maximum(top, tl.load(highest + near)[:, None]))
        weights = tl.reshape(exponentials * fade[:, :, None], (ROWS, COLUMNS)).to(running.dtype.element_ty)
        at = row.to(tl.int64)[:, None] * CHUNK + (token - start)[None, :]
        tl.store(running + at, weights, mask=(row < rows)[:, None])


def cases(arch: Architecture) -> Iterator[Case]:
    """Both forms of the first product, with each tile."""
    pointers = {"hidden": "*bf16", "table": "*bf16", "inverse": "*fp32", "banned": "*i32", "highest": "*fp32"}
    pointers |= {"maxima": "*fp32", "sums": "*fp32", "below": "*fp32", "leading": "*i32"}
    numbers = {"rows": "i32", "start": "i32", "cap": "fp32"}
    for tile in TILES:
        name = f"scores_{tile.rows}x{tile.columns}x{tile.stages}"
        shape = {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "SUB": SUB, "LOWEST": LOWEST}
        sizes = {"VOCAB": arch.vocab_size, "WIDTH": arch.hidden_size, "BANNED": 8}
        constants = {**sizes, **shape, "CHUNK": chunking(tile, arch.hidden_size)[0]}
        sms = (90,) if tile in TILES[2:] else (90, 120, 121)
        types = pointers | {"running": "*bf16"} | numbers
        yield Case(name, _scores, types, constants, tile.warps, tile.stages, sms)
        alone = constants | {"running": None}
        yield Case(f"{name}_last_step", _scores, pointers | numbers, alone, tile.warps, tile.stages, sms)
