"""Caches to attend over."""

import torch
from torch import Tensor

from trtllm_build.kernels.attention.cache import LayerCache
from trtllm_build.limits import PAGE


def pages(
    draw: torch.Generator, batch: int, pages_of_a_slot: int, kv_heads: int, size: int, dtype: torch.dtype, longest: int
) -> tuple[LayerCache, Tensor]:
    """A cache of more slots than sequences, its pages in random order, and the slots of the sequences.

    Every slot has a random length up to ``longest``, one of them 0 in half of the draws. Rows of no cached token are
    NaN, as memory that nothing was written to may be.
    """
    slots = batch + 1
    count = slots * pages_of_a_slot + 1
    keys, values = torch.randn(2, count, PAGE, kv_heads, size, generator=draw)
    table = torch.randperm(count, generator=draw)[: slots * pages_of_a_slot].view(slots, pages_of_a_slot).int()
    lengths = torch.randint(0, longest + 1, (slots,), generator=draw, dtype=torch.int32)
    if torch.randint(0, 2, (), generator=draw):
        lengths[0] = 0
    written = torch.zeros(count, PAGE, dtype=torch.bool)
    for slot, length in enumerate(lengths.tolist()):
        position = torch.arange(max(0, length - pages_of_a_slot * PAGE), length)
        written[table[slot, position // PAGE % pages_of_a_slot].long(), position % PAGE] = True
    keys[~written] = torch.nan
    values[~written] = torch.nan
    chosen = torch.randperm(slots, generator=draw)[:batch].int()
    return LayerCache(keys.to(dtype), values.to(dtype), table, lengths), chosen
