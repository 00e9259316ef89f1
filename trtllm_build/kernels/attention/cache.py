"""Keys and values of one layer, in pages on the device, and what appends to them.

Position p of a slot lies in page ``table[slot, (p // PAGE) % pages_of_a_slot]``, at row ``p % PAGE``. A global layer's
table is as long as the context; a sliding layer's is a ring, of which the oldest page is written over.
(Paged attention: Kwon et al., 2023.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.kernels.machine_code import Case
from trtllm_build.limits import PAGE


@dataclass(frozen=True)
class LayerCache:
    """One layer's cache. All of it is on the device and may change between two replays of a CUDA graph.

    Args:
        keys: ``[pages, PAGE, kv_heads, head_size]`` contiguous.
        values: like ``keys``.
        table: ``[slots, pages of a slot]`` int32, numbers of pages. ``pages of a slot * PAGE`` is at least the
            context, or ``window - 1 + PAGE`` in a sliding layer.
        lengths: ``[slots]`` int32, tokens cached; a ring keeps only the last of them.
    """

    keys: Tensor
    values: Tensor
    table: Tensor
    lengths: Tensor

    @property
    def capacity(self) -> int:
        """Tokens per slot's pages hold."""
        return self.table.shape[1] * PAGE


def append_reference(k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor, counts: Tensor | None = None) -> None:
    """As :func:`append`."""
    _check(k, cache)
    for b, slot in enumerate(slots.tolist()):
        count = k.shape[1] if counts is None else int(counts[b])
        position = int(cache.lengths[slot]) + torch.arange(count, device=k.device)
        page = cache.table[slot, position // PAGE % cache.table.shape[1]].long()
        cache.keys[page, position % PAGE] = k[b, :count].to(cache.keys.dtype)
        cache.values[page, position % PAGE] = v[b, :count].to(cache.values.dtype)


def append(k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor, counts: Tensor | None = None) -> None:
    """Write new keys and values after those cached. ``lengths`` stay: every layer reads them before they grow.

    In a ring this writes over positions that :func:`trtllm_build.kernels.attention.paged.attend` still reads for the
    same tokens, so a layer attends first and appends second.

    Args:
        k: ``[batch, tokens, kv_heads, head_size]`` contiguous.
        v: like ``k``.
        cache: written to.
        slots: ``[batch]`` int32, no two the same where both have tokens.
        counts: ``[batch]`` int32, how many of the tokens are real; the others are not written. None: all.

    Raises:
        ValueError: when there are more tokens than a slot's pages hold, so that two would share a place.
    """
    _check(k, cache)
    assert all(x.is_contiguous() for x in (k, v, *vars(cache).values(), slots))
    batch, tokens, kv_heads, size = k.shape
    width, pages = kv_heads * size, cache.table.shape[1]
    _append[(tokens, batch)](
        *(k, v, cache.keys, cache.values, cache.table, cache.lengths, slots, counts, tokens),
        *(pages, PAGE, width, triton.next_power_of_2(width)),
    )


def _check(k: Tensor, cache: LayerCache) -> None:
    if k.shape[1] > cache.capacity:
        raise ValueError(f"{k.shape[1]} tokens at once, but a slot's pages hold {cache.capacity}; append fewer")


@triton.jit(do_not_specialize=["tokens"])
def _append(
    k,
    v,
    keys,
    values,
    table,
    lengths,
    slots,
    counts,
    tokens,
    PAGES: tl.constexpr,
    PAGE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0)
    sequence = tl.program_id(1)
    count = tokens
    if counts is not None:
        count = tl.load(counts + sequence)
    if token >= count:
        return
    slot = tl.load(slots + sequence).to(tl.int64)
    position = tl.load(lengths + slot) + token
    page = tl.load(table + slot * PAGES + position // PAGE % PAGES).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    source = (sequence.to(tl.int64) * tokens + token) * WIDTH + columns
    target = (page * PAGE + position % PAGE) * WIDTH + columns
    tl.store(keys + target, tl.load(k + source, mask=inside).to(keys.dtype.element_ty), mask=inside)
    tl.store(values + target, tl.load(v + source, mask=inside).to(values.dtype.element_ty), mask=inside)


def cases(arch: Architecture) -> Iterator[Case]:
    """Both kinds of layer, with padded tokens."""
    for layer, name in ((arch.num_hidden_layers - 1, "global"), (0, "sliding")):
        width = arch.kv_heads(layer) * arch.head_size(layer)
        context = arch.max_position_embeddings if name == "global" else arch.sliding_window - 1 + PAGE
        yield Case(
            f"append {name}",
            _append,
            dict.fromkeys(("k", "v", "keys", "values"), "*bf16")
            | dict.fromkeys(("table", "lengths", "slots", "counts"), "*i32")
            | {"tokens": "i32"},
            {"PAGES": triton.cdiv(context, PAGE), "PAGE": PAGE, "WIDTH": width}
            | {"BLOCK": triton.next_power_of_2(width)},
        )
