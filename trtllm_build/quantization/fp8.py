"""Rows of float8_e4m3fn with a float32 scale each: a weight's output channels, or an activation's tokens.

Weights are scaled once, at build time; activations at run time, each token by its own largest value, so that nothing
is calibrated and no token's rounding depends on another's (ModelOpt's ``FP8_PER_CHANNEL_PER_TOKEN``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max  # 448
SMALLEST = 1e-12  # of a row's largest magnitude: a row of zeros is divided by this


@dataclass(frozen=True)
class Fp8:
    """Quantised rows.

    Args:
        values: ``[..., rows, width]`` float8_e4m3fn.
        scale: ``[..., rows]`` float32; a row's numbers are ``values * scale``.
    """

    values: Tensor
    scale: Tensor


Rows = Tensor | Fp8
"""Rows as they are (bfloat16, float32), or quantised."""


def values_of(rows: Rows) -> Tensor:
    """What is stored for the rows, without their scales."""
    return rows.values if isinstance(rows, Fp8) else rows


def scale_of(rows: Rows) -> Tensor | None:
    """Scales ``[..., rows]``; None for rows that are not quantised."""
    return rows.scale if isinstance(rows, Fp8) else None


def widen(rows: Rows) -> Tensor:
    """The rows' numbers in float32."""
    return rows.values.float() * rows.scale[..., None] if isinstance(rows, Fp8) else rows.float()


def rows_to_fp8(x: Tensor) -> Fp8:
    """Scale every row of ``x [..., rows, width]`` to its largest magnitude and round to the nearest."""
    wide = x.float()
    scale = wide.abs().amax(-1).clamp_min(SMALLEST) / LARGEST
    return Fp8((wide / scale[..., None]).clamp(-LARGEST, LARGEST).to(DTYPE), scale)
