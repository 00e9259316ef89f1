"""Drawing from the nucleus of a distribution (top_p) whose logits pass by in chunks and are gone.

The nucleus is the smallest set of likeliest tokens that weighs ``top_p``; of those with equal logits, lower ids go
first. Its least logit is found digit by digit, as in a radix sort: each pass sums weights by the next bits of a
float32's place in order, within what the digits before have left. Three passes give all 32 bits, a fourth draws.
Weights are integers, so that sums are the same in any order, on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trtllm_build.sampling import Sampling

_DIGITS = ((21, 11), (10, 11), (0, 10))  # shift and bits
_UNIT = 2.0**43  # weight of the likeliest token: 2**18 of them fit 63 bits, with room for its rounding


def draw(
    chunks: Callable[[], Iterator[tuple[int, Tensor]]],
    inverse_temperature: float,
    cap: float,
    likeliest: Tensor,
    highest: Tensor,
    top_p: float,
    draws: Tensor,
) -> Tensor:
    """One token per row: the first, by id, at which the nucleus's cumulative weight exceeds the draw.

    Args:
        chunks: each call gives, in order, the first index and the un-capped logits ``[rows, tokens]`` of every chunk,
            minus infinity for what is ruled out; the same numbers every time.
        inverse_temperature: that is sampled at.
        cap: soft-cap of the logits.
        likeliest: index of each row's highest logit ``[rows]`` int64.
        highest: that un-capped logit ``[rows]`` float32; another rounding of it does no harm.
        top_p: weight of the nucleus, 0 to 1.
        draws: ``[rows]`` uniforms in [0, 1).

    Returns:
        Indices ``[rows]`` int64.
    """
    reference = torch.tanh(highest / cap) * cap * inverse_temperature

    def weighed(products: Tensor) -> tuple[Tensor, Tensor]:
        """Places in order and weights, ``[rows, tokens]`` int64."""
        logits = torch.tanh(products / cap) * cap * inverse_temperature
        weights = (torch.exp(logits - reference[:, None]) * _UNIT).round().long()
        return _places(products), torch.where(products == float("-inf"), 0, weights)

    rows = len(draws)
    found = torch.zeros(rows, dtype=torch.int64, device=draws.device)  # digits of the least logit, so far
    above = torch.zeros_like(found)  # weight of what is certainly likelier
    needed = count = inside = found
    for shift, bits in _DIGITS:
        sums = torch.zeros(rows, 2**bits, dtype=torch.int64, device=draws.device)
        counts = torch.zeros_like(sums)
        for _, products in chunks():
            places, weights = weighed(products)
            open_ = (places >> (shift + bits) == found[:, None]) & (weights > 0)
            digits = (places >> shift) & (2**bits - 1)
            sums.scatter_add_(1, digits, torch.where(open_, weights, 0))
            counts.scatter_add_(1, digits, open_.long())
        downwards = sums.flip(-1).cumsum(-1)
        if shift == _DIGITS[0][0]:
            needed = (downwards[:, -1].double() * top_p).ceil().long().clamp(min=1)
            needed = torch.minimum(needed, downwards[:, -1])
        index = torch.searchsorted(downwards, (needed - above)[:, None]).clamp(max=2**bits - 1)
        digit = 2**bits - 1 - index
        inside, count = sums.gather(1, digit)[:, 0], counts.gather(1, digit)[:, 0]
        above = above + downwards.gather(1, index)[:, 0] - inside
        found = (found << bits) | digit[:, 0]
    each = (inside // count.clamp(min=1)).clamp(min=1)  # all that is left is equally likely
    ties = torch.minimum(-((above - needed) // each), count)
    target = (draws.double() * (above + ties * each).double()).long()
    return _first_above(chunks, weighed, found, ties, target, likeliest)


def undecided(entropy: Tensor, sampling: Sampling) -> Tensor:
    """Rows ``[n]`` int64 whose nucleus may hold more than the likeliest token.

    No probability is above the largest, so that this is at least ``exp(-entropy)``, and more at a lower temperature.

    Args:
        entropy: ``[rows]`` nats, at the temperature of the step.
        sampling: how tokens are drawn.
    """
    if sampling.temperature > 1:
        return torch.arange(len(entropy), device=entropy.device)
    # the entropy is rounded
    return (torch.exp(-entropy) < 1.0001 * sampling.top_p).nonzero()[:, 0]


def _first_above(
    chunks: Callable[[], Iterator[tuple[int, Tensor]]],
    weighed: Callable[[Tensor], tuple[Tensor, Tensor]],
    least: Tensor,
    ties: Tensor,
    target: Tensor,
    otherwise: Tensor,
) -> Tensor:
    """Index of the first token at which the cumulative weight of the nucleus exceeds ``target``."""
    drawn, done = otherwise.clone(), torch.zeros_like(least, dtype=torch.bool)
    before, met = torch.zeros_like(least), torch.zeros_like(least)
    for start, products in chunks():
        places, weights = weighed(products)
        equal = places == least[:, None]
        order = met[:, None] + equal.long().cumsum(-1)
        kept = (places > least[:, None]) | (equal & (order <= ties[:, None]))
        cumulative = before[:, None] + torch.where(kept, weights, 0).cumsum(-1)
        index = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
        here = ~done & (index < products.shape[1])
        drawn, done = torch.where(here, start + index, drawn), done | here
        before, met = cumulative[:, -1].contiguous(), order[:, -1].contiguous()
    return drawn


def _places(numbers: Tensor) -> Tensor:
    """Where float32 numbers stand among all of them: 0 to 2**32 - 1, int64; minus zero is zero."""
    bits = (numbers + 0.0).view(torch.int32).long()
    return torch.where(bits < 0, -1 - (bits & 0x7FFFFFFF), bits) + 2**31
