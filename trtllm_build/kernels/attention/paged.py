"""Attention of one layer: new tokens over their slot's cached keys and over each other, in both phases of the model.

Softmax is online, in float32 and base 2 (Dao et al., FlashAttention, 2022). The query heads that share a key-value head
are rows of one block, so that keys are read once for all of them. The keys are cut into a fixed number of splits,
merged by a second kernel: one sequence has too few rows to fill a GPU. Neither depends on the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.kernels.attention.cache import LayerCache
from trtllm_build.kernels.attention.merge import merge
from trtllm_build.kernels.attention.tile import TILES, AttentionTile, tiles_for
from trtllm_build.kernels.machine_code import SHARED_BYTES, Case
from trtllm_build.limits import PAGE


def attend_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: LayerCache,
    slots: Tensor,
    window: int | None,
    causal: bool,
    counts: Tensor | None = None,
) -> Tensor:
    """As :func:`attend`; rows of tokens that are not real are 0."""
    out = torch.zeros_like(q)
    for b, slot in enumerate(slots.tolist()):
        length = int(cache.lengths[slot])
        count = q.shape[1] if counts is None else int(counts[b])
        first = 0 if window is None else max(0, length - (window - 1))
        cached = torch.arange(first, length, device=q.device)
        page = cache.table[slot, cached // PAGE % cache.table.shape[1]].long()
        keys = torch.cat([cache.keys[page, cached % PAGE], k[b, :count]]).float()
        values = torch.cat([cache.values[page, cached % PAGE], v[b, :count]]).float()
        new = length + torch.arange(count, device=q.device)
        distance = new[:, None] - torch.cat([cached, new])
        seen = torch.ones_like(distance, dtype=torch.bool)
        if causal:
            seen = (distance >= 0) & (distance < (window or distance.shape[1] + length))
        grouped = q[b, :count].float().unflatten(1, (k.shape[2], -1))
        scores = torch.einsum("tkgc,skc->kgts", grouped, keys).masked_fill(~seen, -torch.inf)
        out[b, :count] = torch.einsum("kgts,skc->tkgc", scores.softmax(-1), values).flatten(1, 2).to(q.dtype)
    return out.flatten(2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: LayerCache,
    slots: Tensor,
    window: int | None,
    causal: bool,
    counts: Tensor | None = None,
    tile: AttentionTile = TILES[0],
) -> Tensor:
    """Attention with scale 1.0: queries and keys are normed.

    A sequence's tokens read the cached positions ``[max(0, length - (window - 1)), length)`` of its slot, all when
    ``window`` is None, and new tokens: all of them when denoising; when encoding, those up to the token itself, and
    neither cached nor new ones further back than ``window`` keys, its own included.

    Args:
        q: ``[batch, tokens, heads, head_size]`` contiguous.
        k: ``[batch, tokens, kv_heads, head_size]`` contiguous; the new tokens', not in the cache.
        v: like ``k``.
        cache: of this layer, only read.
        slots: ``[batch]`` int32.
        window: of a sliding layer; None for a global one.
        causal: True to encode, False to denoise.
        counts: ``[batch]`` int32, how many of the tokens are real; keys of the others are not read, and their own
            rows of the result are finite where their queries are. None: all.
        tile: how the work is cut up; changes results only by rounding.

    Returns:
        ``[batch, tokens, heads * head_size]``, dtype of ``q``.
    """
    assert all(x.is_contiguous() for x in (q, k, v, *vars(cache).values(), slots))
    batch, tokens, heads, size = q.shape
    kv_heads, splits = k.shape[2], tile.splits
    padded = max(16, triton.next_power_of_2(size))
    channels = min(tile.channels, padded)
    out = torch.empty_like(q)
    partial, top, total = out, None, None
    if splits > 1:
        partial = torch.empty(splits, *q.shape, dtype=torch.float32, device=q.device)
        top = torch.empty(partial.shape[:-1], dtype=torch.float32, device=q.device)
        total = torch.empty_like(top)
    blocks = triton.cdiv(tokens * (heads // kv_heads), tile.rows)
    _attend[(blocks * (padded // channels), splits, batch * kv_heads)](
        *(q, k, v, cache.keys, cache.values, cache.table, cache.lengths, slots, counts, partial, top, total, tokens),
        *(heads // kv_heads, kv_heads, size, cache.table.shape[1], PAGE, window, causal),
        *(tile.rows, tile.keys, padded, channels, splits),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if top is not None and total is not None:
        merge(partial, top, total, out)
    return out.view(batch, tokens, heads * size)


@triton.jit
def _read(keys, values, offsets, inside, columns, channels, HEAD: tl.constexpr, PADDED: tl.constexpr):
    """A block of keys ``[KEYS, PADDED]`` and values ``[KEYS, CHANNELS]``; 0 where not ``inside``, or beyond a head."""
    inside_k = inside[:, None]
    inside_v = inside[:, None]
    if HEAD != PADDED:
        inside_k = inside_k & (columns < HEAD)[None, :]
        inside_v = inside_v & (channels < HEAD)[None, :]
    key = tl.load(keys + (offsets[:, None] + columns[None, :]), mask=inside_k, other=0.0)
    value = tl.load(values + (offsets[:, None] + channels[None, :]), mask=inside_v, other=0.0)
    return key, value


@triton.jit
def _add(acc, top, total, query, key, value, seen):
    """Online softmax: sums ``acc`` and ``total``, relative to the largest score ``top``, with one more block of keys.

    ``top`` starts finite, so that a row which sees nothing of a block adds ``exp2(-inf)``, 0, and changes nothing.
    """
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * 1.4426950408889634  # log2(e)
    scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(top - higher)
    acc = tl.dot(weights.to(value.dtype), value, acc * shrink[:, None], input_precision="ieee")
    return acc, higher, total * shrink + tl.sum(weights, 1)


@triton.jit(do_not_specialize=["tokens"])
def _attend(
    q,
    k,
    v,
    keys,
    values,
    table,
    lengths,
    slots,
    counts,
    out,
    tops,
    totals,
    tokens,
    GROUP: tl.constexpr,
    KV: tl.constexpr,
    HEAD: tl.constexpr,
    PAGES: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PADDED: tl.constexpr,
    CHANNELS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    PARTS: tl.constexpr = PADDED // CHANNELS
    part = tl.program_id(0) % PARTS
    row = tl.program_id(0) // PARTS * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    sequence = tl.program_id(2) // KV
    kv_head = tl.program_id(2) % KV
    slot = tl.load(slots + sequence).to(tl.int64)
    length = tl.load(lengths + slot)
    count = tokens
    if counts is not None:
        count = tl.load(counts + sequence)

    # row = token * GROUP + head of the group: a block's rows are neighbours, which see nearly the same keys
    token = row // GROUP
    first = tl.program_id(0) // PARTS * ROWS // GROUP
    last = (tl.program_id(0) // PARTS * ROWS + ROWS - 1) // GROUP
    columns = tl.arange(0, PADDED)
    channels = part * CHANNELS + tl.arange(0, CHANNELS)
    base = sequence.to(tl.int64) * tokens
    head = (base + token) * (KV * GROUP) + kv_head * GROUP + row % GROUP
    real = token < tokens
    inside = real[:, None]
    if HEAD != PADDED:
        inside = inside & (columns < HEAD)[None, :]
    query = tl.load(q + (head * HEAD)[:, None] + columns[None, :], mask=inside, other=0.0)

    # blocks of keys these rows may see: cached ones [cached_from, + cached), then new ones [new_from, + new)
    oldest = 0
    newest = count
    lowest = 0
    if WINDOW is not None:
        oldest = tl.maximum(length - (WINDOW - 1), 0)
        if CAUSAL:
            oldest = tl.maximum(length - (WINDOW - 1) + first, 0)
            lowest = tl.maximum(first - (WINDOW - 1), 0)
    if CAUSAL:
        newest = tl.minimum(count, last + 1)
    cached_from = oldest // KEYS
    new_from = lowest // KEYS
    cached = tl.maximum(tl.cdiv(length, KEYS) - cached_from, 0)
    new = tl.maximum(tl.cdiv(newest, KEYS) - new_from, 0)
    blocks = tl.where(first < count, cached + new, 0)
    each = tl.maximum(tl.cdiv(blocks, SPLITS), 128 // KEYS)  # fewer are not worth a split
    begin = tl.minimum(split * each, blocks)
    end = tl.minimum(begin + each, blocks)

    top = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, CHANNELS], tl.float32)
    span = tl.arange(0, KEYS)
    lane = span * (KV * HEAD) + kv_head * HEAD
    for block in range(cached_from + begin, cached_from + tl.minimum(end, cached)):
        start = block * KEYS  # a block lies in one page
        page = tl.load(table + slot * PAGES + start // PAGE % PAGES).to(tl.int64)
        place = (page * PAGE + start % PAGE) * (KV * HEAD)
        position = start + span
        known = (position >= oldest) & (position < length)
        key, value = _read(keys + place, values + place, lane, known, columns, channels, HEAD, PADDED)
        seen = known[None, :]
        if CAUSAL and WINDOW is not None:
            seen = seen & (position[None, :] > length + token[:, None] - WINDOW)
        acc, top, total = _add(acc, top, total, query, key, value, seen)
    for block in range(new_from + tl.maximum(begin - cached, 0), new_from + end - cached):
        position = block * KEYS + span
        place = (base + block * KEYS) * (KV * HEAD)
        known = position < newest
        key, value = _read(k + place, v + place, lane, known, columns, channels, HEAD, PADDED)
        seen = known[None, :]
        if CAUSAL:
            seen = seen & (position[None, :] <= token[:, None])
            if WINDOW is not None:
                seen = seen & (position[None, :] > token[:, None] - WINDOW)
        acc, top, total = _add(acc, top, total, query, key, value, seen)

    kept = real[:, None]
    if HEAD != PADDED:
        kept = kept & (channels < HEAD)[None, :]
    if SPLITS == 1:
        acc = acc / tl.maximum(total, 1e-30)[:, None]  # 0 for rows without keys, which are not real
        tl.store(out + (head * HEAD)[:, None] + channels[None, :], acc.to(out.dtype.element_ty), mask=kept)
    else:
        head += split.to(tl.int64) * (tl.num_programs(2) * tokens * GROUP)
        if end > begin:
            tl.store(out + (head * HEAD)[:, None] + channels[None, :], acc, mask=kept)
        if part == 0:
            tl.store(tops + head, top, mask=real)
            tl.store(totals + head, total, mask=real)


def cases(arch: Architecture) -> Iterator[Case]:
    """Both kinds of layer: every tile that fits a GPU when encoding, which has more masks; the first also denoising."""
    heads = arch.num_attention_heads
    for layer, name in ((arch.num_hidden_layers - 1, "global"), (0, "sliding")):
        kv_heads, size = arch.kv_heads(layer), arch.head_size(layer)
        window = None if arch.is_global(layer) else arch.sliding_window
        capacity = arch.max_position_embeddings if window is None else window - 1 + PAGE
        shape = {"GROUP": heads // kv_heads, "KV": kv_heads, "HEAD": size, "PADDED": size, "WINDOW": window}
        shape |= {"PAGES": triton.cdiv(capacity, PAGE), "PAGE": PAGE}
        types = dict.fromkeys(("q", "k", "v", "keys", "values"), "*bf16")
        types |= dict.fromkeys(("table", "lengths", "slots", "counts"), "*i32")
        for causal, tile in ((False, TILES[0]), *((True, tile) for tile in TILES)):
            one = tile.splits == 1
            out = {"out": "*bf16"} if one else {"out": "*fp32", "tops": "*fp32", "totals": "*fp32"}
            yield Case(
                f"{'encode' if causal else 'denoise'} {name} {'x'.join(map(str, vars(tile).values()))}",
                _attend,
                types | out | {"tokens": "i32"},
                shape
                | ({"tops": None, "totals": None} if one else {})
                | {"CAUSAL": causal, "ROWS": tile.rows, "KEYS": tile.keys}
                | {"CHANNELS": min(tile.channels, size), "SPLITS": tile.splits},
                tile.warps,
                tile.stages,
                tuple(sm for sm in SHARED_BYTES if tile in tiles_for(size, sm)),
            )
