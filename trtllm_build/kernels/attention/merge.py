"""Attention over all keys, from attention over each split of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.kernels.attention.tile import TILES
from trtllm_build.kernels.machine_code import Case


def merge_reference(partial: Tensor, top: Tensor, total: Tensor, out: Tensor) -> None:
    """As :func:`merge`."""
    share = torch.exp2(top - top.amax(0))
    rows = torch.where(total[..., None] > 0, partial * share[..., None], 0.0).sum(0)
    out.copy_(rows / (total * share).sum(0).clamp_min(1e-30)[..., None])


def merge(partial: Tensor, top: Tensor, total: Tensor, out: Tensor) -> None:
    """Add the splits, each relative to its own largest score (Dao et al., FlashAttention, 2022, section 3.1).

    Args:
        partial: ``[splits, batch, tokens, heads, head_size]`` float32, sums of weighted values. Not read where
            ``total`` is 0: a split without keys writes no rows.
        top: ``[splits, batch, tokens, heads]`` float32, largest score times log2(e), finite.
        total: like ``top``, sums of weights.
        out: ``[batch, tokens, heads, head_size]``, written to; 0 where all of ``total`` are.
    """
    splits, batch, tokens, heads, size = partial.shape
    rows = batch * tokens
    _merge[(rows,)](
        *(partial, top, total, out, rows, heads, triton.next_power_of_2(heads)),
        *(size, triton.next_power_of_2(size), splits),
        num_warps=8,
    )


@triton.jit(do_not_specialize=["tokens"])
def _merge(
    partial,
    tops,
    totals,
    out,
    tokens,
    HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One token's heads from those of the splits; a split that had no keys wrote a total of 0, and no rows."""
    head = tl.arange(0, PADDED_HEADS)
    real = head < HEADS
    head += tl.program_id(0).to(tl.int64) * HEADS
    columns = tl.arange(0, PADDED)
    place = head[:, None] * HEAD + columns[None, :]
    stride = tokens.to(tl.int64) * HEADS
    top = tl.load(tops + head, mask=real, other=0.0)
    for split in tl.static_range(1, SPLITS):
        top = tl.maximum(top, tl.load(tops + head + split * stride, mask=real, other=0.0))
    total = tl.zeros([PADDED_HEADS], tl.float32)
    acc = tl.zeros([PADDED_HEADS, PADDED], tl.float32)
    for split in tl.static_range(SPLITS):
        sums = tl.load(totals + head + split * stride, mask=real, other=0.0)
        share = tl.exp2(tl.load(tops + head + split * stride, mask=real, other=0.0) - top)
        written = (sums > 0)[:, None] & (columns < HEAD)[None, :]
        total += sums * share
        acc += share[:, None] * tl.load(partial + split * stride * HEAD + place, mask=written, other=0.0)
    acc = acc / tl.maximum(total, 1e-30)[:, None]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=real[:, None] & (columns < HEAD)[None, :])


def cases(arch: Architecture) -> Iterator[Case]:
    """Both kinds of layer, for each number of splits."""
    heads = arch.num_attention_heads
    for layer, name in ((arch.num_hidden_layers - 1, "global"), (0, "sliding")):
        size = arch.head_size(layer)
        for splits in sorted({tile.splits for tile in TILES} - {1}):
            yield Case(
                f"merge {name} {splits}",
                _merge,
                {"partial": "*fp32", "tops": "*fp32", "totals": "*fp32", "out": "*bf16", "tokens": "i32"},
                {"HEADS": heads, "PADDED_HEADS": triton.next_power_of_2(heads), "HEAD": size, "PADDED": size}
                | {"SPLITS": splits},
                warps=8,
            )
