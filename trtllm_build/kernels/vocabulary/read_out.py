"""A denoising step's pass over the vocabulary: argmax, sample, entropy and soft embedding of every position.

Attention's shape: hidden states are the queries, the tied embedding is keys and values (online softmax, Milakov and
Gimelshein, arXiv 1805.02867). One head of width ``hidden`` is far too wide for a block's registers, so the two products
are separate kernels, and a chunk of the vocabulary goes through both before the next one comes:

- :mod:`.logits` multiplies hidden states with the chunk's embeddings. From a tile's accumulators it writes four
  numbers per row and sub-chunk of 128 tokens, from which :mod:`.sample` makes argmax, entropy and sample at the end,
  and the exponentials ``[rows, chunk]``.
- :mod:`.expectation` multiplies those with the same embeddings, and adds them up.

At 256 rows an H100 is about balanced between arithmetic (2 x 0.38 TFLOP) and the table (1.48 GB), at more rows it is
bound by arithmetic, so what counts is that all its multiprocessors are busy. :func:`.scores.plan` cuts chunks such that
one canvas's tiles are one wave of 132 blocks in either product. With tiles of 128 x 128 that chunk is 48 MB, as much as
the L2 cache holds, so that some of the second reading is not from memory; with 64 x 128 it is 24 MB and all of it fits;
with 128 x 256, which asks the L2 for a quarter less a product, the table is read from memory twice. Which of them is
quickest, the build measures.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.contract import SUB, ReadOut
from trtllm_build.kernels.machine_code import Case
from trtllm_build.kernels.tile import Tile
from trtllm_build.kernels.vocabulary import expectation, sample
from trtllm_build.kernels.vocabulary import logits as scores
from trtllm_build.kernels.vocabulary.logits import LOWEST, TILES, chunking


def read_out(
    hidden: Tensor,
    table: Tensor,
    inverse_temperature: Tensor,
    draws: Tensor,
    banned: Tensor | None,
    cap: float,
    scale: float,
    soft: bool,
    chunk: int | None = None,
    tile: Tile = TILES[0],
) -> ReadOut:
    """One pass; rows may be of several canvases.

    Args:
        hidden: normed hidden states ``[rows, hidden]``, contiguous.
        table: tied embedding ``[vocab, hidden]`` in the same dtype, contiguous.
        inverse_temperature: ``[rows]`` float32, above 0.
        draws: ``[rows]`` float32 uniforms in [0, 1).
        banned: token ids each row may not choose, ``[rows, n]`` int32, -1 for none; must leave a token.
        cap: soft-cap of the logits.
        scale: of embeddings.
        soft: whether soft embeddings are wanted.
        chunk: tokens, a multiple of the tile's columns; None: as :func:`plan` has it.
        tile: of both products; columns a multiple of 128, depth a divisor of 128.
    """
    rows, width = hidden.shape
    vocab = len(table)
    planned, splits = chunking(tile, width)
    # nothing but statistics outlives a tile when there is no second product: then one launch does
    chunk = (chunk or planned) if soft else triton.cdiv(vocab, tile.columns) * tile.columns
    starts = range(0, vocab, chunk)
    shape = rows, triton.cdiv(vocab, SUB)
    numbers = [torch.empty(shape, dtype=torch.float32, device=hidden.device) for _ in range(3)]
    leading = torch.empty(shape, dtype=torch.int32, device=hidden.device)
    running = hidden.new_empty(rows, chunk) if soft else None
    expected = torch.empty(splits, rows, width, dtype=torch.float32, device=hidden.device) if soft else None
    highest = torch.full((len(starts) + 1, rows), LOWEST, device=hidden.device)
    for index, start in enumerate(starts):
        scores.score(
            hidden,
            table,
            inverse_temperature,
            banned,
            highest[index],
            numbers,
            leading,
            running,
            start,
            chunk,
            cap,
            tile,
        )
        if running is not None and expected is not None:
            bounds = highest[index], highest[index + 1]
            expectation.accumulate(running, table, numbers[0], *bounds, expected, start, tile)
    chosen = sample.choose(hidden, table, inverse_temperature, draws, banned, numbers, leading, cap)
    embeddings = None if expected is None else expectation.normalize(expected, chosen.total, scale, hidden.dtype)
    return ReadOut(chosen.argmax_ids, chosen.sampled_ids, chosen.entropy, embeddings)


def read_out_reference(
    hidden: Tensor,
    table: Tensor,
    inverse_temperature: Tensor,
    draws: Tensor,
    banned: Tensor | None,
    cap: float,
    scale: float,
    soft: bool,
) -> ReadOut:
    """As :func:`read_out`, with all logits in memory at once; how the vocabulary is cut is nothing to it."""
    logits = tempered_reference(hidden, table, inverse_temperature, banned, cap)
    probabilities = torch.softmax(logits.double(), -1)
    sampled = torch.searchsorted(probabilities.cumsum(-1), draws.double()[:, None], right=True)[:, 0]
    last = (probabilities > 0).long().cumsum(-1).argmax(-1)
    embeddings = (probabilities.float() @ table.float() * scale).to(hidden.dtype) if soft else None
    entropy = torch.special.entr(probabilities).sum(-1).float()
    return ReadOut(logits.argmax(-1), torch.minimum(sampled, last), entropy, embeddings)


def tempered_reference(
    hidden: Tensor, table: Tensor, inverse_temperature: Tensor, banned: Tensor | None, cap: float
) -> Tensor:
    """Soft-capped logits over the temperature, ``[rows, vocab]`` float32; minus infinity where banned."""
    logits = torch.tanh(hidden.float() @ table.float().T / cap) * cap * inverse_temperature[:, None]
    if banned is not None:
        ruled_out = torch.zeros(len(hidden), len(table) + 1, dtype=torch.bool, device=hidden.device)
        ruled_out.scatter_(1, torch.where(banned < 0, len(table), banned).long(), True)
        logits = logits.masked_fill(ruled_out[:, :-1], float("-inf"))
    return logits


def cases(arch: Architecture) -> Iterator[Case]:
    """Every kernel of the pass."""
    for part in (scores, expectation, sample):
        yield from part.cases(arch)
