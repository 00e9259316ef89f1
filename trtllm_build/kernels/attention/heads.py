"""Queries, keys and values out of their joint projection: each head normed, queries and keys rotated."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from nemo_diffgemma.architecture import GLOBAL, SLIDING, Architecture
from trtllm_build.kernels.machine_code import Case
from trtllm_build.network.norm import rms_norm
from trtllm_build.network.rope import rotate


def heads(
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    size: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm and rotate the heads of every row.

    Args:
        qkv: ``[rows, (heads + 2 * kv_heads) * size]``, contiguous: queries, keys, values. Without the values, as in
            global layers, the value is the un-normed key projection.
        q_norm, k_norm: weights ``[size]``; the values' norm has none.
        cos, sin: ``[rows, size]`` float32, contiguous. Both halves of a row are the same, as
            :func:`trtllm_build.network.rope.rotation` makes them: only the first is read.
        heads, kv_heads: of the layer.
        size: of a head, even.
        eps: of the norms.

    Returns:
        ``[rows, heads, size]``, and twice ``[rows, kv_heads, size]``, in ``qkv``'s dtype. Norms are rounded to it
        before they are rotated, which is done in float32.
    """
    rows, parts = qkv.shape[0], qkv.shape[1] // size
    q, k, v = (qkv.new_empty(rows, count, size) for count in (heads, kv_heads, kv_heads))
    half = triton.next_power_of_2(size // 2)
    _heads[(rows * parts,)](
        qkv, q_norm, k_norm, cos, sin, q, k, v, heads, kv_heads, parts, size, eps, half, num_warps=1
    )
    return q, k, v


def heads_reference(
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    size: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`heads`, in torch."""
    q, k, v = qkv.unflatten(-1, (-1, size)).tensor_split((heads, heads + kv_heads), dim=1)
    v = v if v.shape[1] else k
    q, k = (rotate(rms_norm(x, w, eps), cos, sin).to(x.dtype) for x, w in ((q, q_norm), (k, k_norm)))
    return q, k, rms_norm(v, None, eps)


@triton.jit
def _heads(
    qkv,
    q_norm,
    k_norm,
    cos,
    sin,
    q,
    k,
    v,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PARTS: tl.constexpr,
    SIZE: tl.constexpr,
    EPS: tl.constexpr,
    HALF: tl.constexpr,
):
    """One head of one row a program. Its halves are held apart, since each turns with the other."""
    row = tl.program_id(0).to(tl.int64) // PARTS
    head = tl.program_id(0) % PARTS
    columns = tl.arange(0, HALF)
    inside = columns < SIZE // 2
    x = qkv + (row * PARTS + head) * SIZE + columns
    first = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + SIZE // 2, mask=inside, other=0.0).to(tl.float32)
    factor = tl.rsqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / SIZE + EPS)
    first *= factor
    second *= factor
    if head < HEADS:
        _rotated(first, second, q_norm, cos, sin, q + (row * HEADS + head) * SIZE, row, columns, inside, SIZE)
    elif head < HEADS + KV_HEADS:
        out = (row * KV_HEADS + head - HEADS) * SIZE
        _rotated(first, second, k_norm, cos, sin, k + out, row, columns, inside, SIZE)
        if PARTS == HEADS + KV_HEADS:
            _store(first, second, v + out, columns, inside, SIZE)
    else:
        out = (row * KV_HEADS + head - HEADS - KV_HEADS) * SIZE
        _store(first, second, v + out, columns, inside, SIZE)


@triton.jit
def _rotated(first, second, weight, cos, sin, out, row, columns, inside, SIZE: tl.constexpr):
    dtype: tl.constexpr = out.dtype.element_ty
    first *= tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    second *= tl.load(weight + SIZE // 2 + columns, mask=inside, other=0.0).to(tl.float32)
    first = first.to(dtype).to(tl.float32)
    second = second.to(dtype).to(tl.float32)
    c = tl.load(cos + row * SIZE + columns, mask=inside, other=0.0)
    s = tl.load(sin + row * SIZE + columns, mask=inside, other=0.0)
    _store(first * c - second * s, second * c + first * s, out, columns, inside, SIZE)


@triton.jit
def _store(first, second, out, columns, inside, SIZE: tl.constexpr):
    dtype: tl.constexpr = out.dtype.element_ty
    tl.store(out + columns, first.to(dtype), mask=inside)
    tl.store(out + SIZE // 2 + columns, second.to(dtype), mask=inside)


def cases(arch: Architecture) -> Iterator[Case]:
    """A sliding layer's and a global layer's heads."""
    layers = {"sliding": arch.layer_types.index(SLIDING), "global": arch.layer_types.index(GLOBAL)}
    for name, layer in layers.items():
        count, kv_heads, size = arch.num_attention_heads, arch.kv_heads(layer), arch.head_size(layer)
        parts = count + kv_heads * (1 if arch.is_global(layer) else 2)
        types = dict.fromkeys(("qkv", "q_norm", "k_norm", "q", "k", "v"), "*bf16") | {"cos": "*fp32", "sin": "*fp32"}
        shape = {"HEADS": count, "KV_HEADS": kv_heads, "PARTS": parts, "SIZE": size, "HALF": size // 2}
        yield Case(f"heads_{name}", _heads, types, shape | {"EPS": arch.rms_norm_eps}, warps=1)
