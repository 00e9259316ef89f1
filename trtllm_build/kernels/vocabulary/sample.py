"""From the statistics of a vocabulary's sub-chunks to each row's argmax, sample and entropy.

The sample is the first token whose cumulative probability exceeds the draw: first its sub-chunk, from sums in float64,
then the token within it: the 128 logits are computed again. The draw's place between the sub-chunk's bounds is carried
over, so that rounding cannot push it out. Those embeddings take 0.7 MB per row, 0.2 GB per canvas: an eighth of
the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.contract import SUB
from trtllm_build.kernels.machine_code import Case
from trtllm_build.kernels.vocabulary.logits import LOWEST, inadmissible, tempered

_DEPTH = 64
_WARPS = 8


@dataclass(frozen=True)
class Chosen:
    """Each row's tokens.

    Args:
        argmax_ids: ``[rows]`` int64.
        sampled_ids: ``[rows]`` int64.
        entropy: ``[rows]`` float32, nats.
        total: ``[rows]`` float32, sum of exponentials relative to the highest tempered logit.
    """

    argmax_ids: Tensor
    sampled_ids: Tensor
    entropy: Tensor
    total: Tensor


def choose(
    hidden: Tensor,
    table: Tensor,
    inverse_temperature: Tensor,
    draws: Tensor,
    banned: Tensor | None,
    numbers: Sequence[Tensor],
    leading: Tensor,
    cap: float,
) -> Chosen:
    """Argmax, sample and entropy.

    Args:
        hidden, table, inverse_temperature, draws, banned, cap: as in
            :func:`trtllm_build.kernels.vocabulary.read_out.read_out`.
        numbers: of each sub-chunk, ``[rows, subs]`` float32: its highest tempered logit, the sum of exponentials
            relative to that, and their sum weighted with how far each logit is below it.
        leading: the token id of each sub-chunk's highest logit ``[rows, subs]`` int32.
    """
    rows, width = hidden.shape
    ids = torch.empty(2, rows, dtype=torch.int64, device=hidden.device)
    out = torch.empty(2, rows, dtype=torch.float32, device=hidden.device)
    count = 0 if banned is None else banned.shape[1]
    _choose[(rows,)](
        hidden, table, inverse_temperature, draws, banned, *numbers, leading, ids[0], ids[1], out[0], out[1],
        cap, len(table), width, count, leading.shape[1], triton.next_power_of_2(leading.shape[1]), _DEPTH,
        num_warps=_WARPS,
    )  # fmt: skip
    return Chosen(ids[0], ids[1], out[0], out[1])


@triton.jit
def _draw(weights, target, SIZE: tl.constexpr):
    """Index of the first cumulative weight above the target, that weight, and the sum before it.

    Nothing without weight is drawn, whatever a parallel sum's rounding makes of it. All float64.
    """
    index = tl.arange(0, SIZE)
    cumulative = tl.cumsum(weights, 0)
    some = weights > 0
    found = tl.min(tl.where(some & (cumulative > target), index, SIZE), 0)
    found = tl.minimum(found, tl.max(tl.where(some, index, 0), 0))
    here = index == found
    inside = tl.sum(tl.where(here, weights, 0.0), 0)
    return found, inside, tl.sum(tl.where(here, cumulative, 0.0), 0) - inside


@triton.jit
def _choose(
    hidden, table, inverse, draws, banned, maxima, sums, below, leading, argmax, sampled, entropy, total, cap,
    VOCAB: tl.constexpr, WIDTH: tl.constexpr, BANNED: tl.constexpr, SUBS: tl.constexpr, SPAN: tl.constexpr,
    DEPTH: tl.constexpr, SUB: tl.constexpr = 128, LOWEST: tl.constexpr = -1e30,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    sub = tl.arange(0, SPAN)
    inside = sub < SUBS
    tops = tl.load(maxima + row * SUBS + sub, mask=inside, other=LOWEST)
    within = tl.load(sums + row * SUBS + sub, mask=inside, other=0.0)
    lower = tl.load(below + row * SUBS + sub, mask=inside, other=0.0)
    highest = tl.max(tops, 0)
    best = tl.min(tl.where((tops == highest) & inside, sub, SUBS - 1), 0)
    tl.store(argmax + row, tl.minimum(tl.load(leading + row * SUBS + best), VOCAB - 1).to(tl.int64))
    # entropy from how far logits are below the highest: no difference of large numbers
    fade = tl.exp(tops - highest)
    weights = within.to(tl.float64) * fade.to(tl.float64)
    whole = tl.sum(weights, 0)
    spread = tl.sum(lower.to(tl.float64) * fade + weights * (highest - tops).to(tl.float64), 0)
    tl.store(entropy + row, tl.log(whole.to(tl.float32)) + (spread / whole).to(tl.float32))
    tl.store(total + row, whole.to(tl.float32))

    target = tl.load(draws + row).to(tl.float64) * whole
    which, weight, before = _draw(weights, target, SPAN)
    share = tl.minimum(tl.maximum((target - before) / weight, 0.0), 1.0)
    token = which * SUB + tl.arange(0, SUB)
    there = table + tl.minimum(token, VOCAB - 1).to(tl.int64)[:, None] * WIDTH
    partial = tl.zeros((SUB, DEPTH), tl.float32)
    for k in range(0, WIDTH, DEPTH):
        depth = k + tl.arange(0, DEPTH)
        x = tl.load(hidden + row * WIDTH + depth, mask=depth < WIDTH, other=0.0).to(tl.float32)
        e = tl.load(there + depth[None, :], mask=(depth < WIDTH)[None, :], other=0.0).to(tl.float32)
        partial += x[None, :] * e
    logits = tempered(tl.sum(partial, 1), cap, tl.load(inverse + row))[None, :]
    logits = tl.where(token[None, :] < VOCAB, logits, float("-inf"))
    if BANNED > 0:
        rows = row + tl.zeros((1,), tl.int64)
        logits = inadmissible(logits, token, banned, rows, which * SUB, BANNED, SUB)
    # relative to their own highest: a sub-chunk of little weight is as exact as any
    exponentials = tl.max(tl.exp(logits - tl.max(tl.max(logits, 1), 0)), 0).to(tl.float64)
    found, _, _ = _draw(exponentials, share * tl.sum(exponentials, 0), SUB)
    tl.store(sampled + row, which.to(tl.int64) * SUB + found)


def cases(arch: Architecture) -> Iterator[Case]:
    """With banned tokens."""
    types = {"hidden": "*bf16", "table": "*bf16", "inverse": "*fp32", "draws": "*fp32", "banned": "*i32"}
    types |= dict.fromkeys(("maxima", "sums", "below"), "*fp32") | {"leading": "*i32"}
    types |= {"argmax": "*i64", "sampled": "*i64", "entropy": "*fp32", "total": "*fp32", "cap": "fp32"}
    subs = triton.cdiv(arch.vocab_size, SUB)
    constants = {"VOCAB": arch.vocab_size, "WIDTH": arch.hidden_size, "BANNED": 8, "SUBS": subs}
    constants |= {"SPAN": triton.next_power_of_2(subs), "DEPTH": _DEPTH, "SUB": SUB, "LOWEST": LOWEST}
    yield Case("choose", _choose, types, constants, _WARPS)
