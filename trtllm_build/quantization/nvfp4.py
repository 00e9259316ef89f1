"""NVFP4: e2m1 numbers, two a byte, an e4m3 scale per block of 16 along the input, one float32 scale per tensor.

The arithmetic of ModelOpt's ``NVFP4QTensor``, bit for bit. The experts of a layer are one tensor and share its scale,
so that their products can be one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_diffgemma.errors import require

BLOCK = 16
LARGEST = 6.0  # of e2m1
_LARGEST_SCALE = 448.0  # of e4m3
_SMALLEST_SCALE = 2.0**-9
_ROWS = 128  # widened together: what is made of them stays in a core's cache
_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


@dataclass(frozen=True)
class Nvfp4:
    """A quantised weight; its numbers are ``values * block_scale * scale``.

    Args:
        values: ``[..., out, in / 2]`` uint8, the even column in the low four bits.
        block_scale: ``[..., out, in / 16]`` float8_e4m3fn.
        scale: ``[]`` float32.
    """

    values: Tensor
    block_scale: Tensor
    scale: Tensor


def quantize_nvfp4(weight: Tensor) -> Nvfp4:
    """Quantise ``[..., out, in]``; a few rows are widened at a time.

    Raises:
        FieldError: when ``in`` is not a whole number of blocks.
    """
    width = weight.shape[-1]
    require(
        width % BLOCK == 0,
        field="precision",
        value=f"nvfp4 of a weight {width} wide",
        allowed=f"widths that are multiples of {BLOCK}",
        fix="pass precision=fp8",
    )
    scale = weight.abs().amax().float() / (LARGEST * _LARGEST_SCALE)
    values = torch.empty(*weight.shape[:-1], width // 2, dtype=torch.uint8)
    block_scale = torch.empty(*weight.shape[:-1], width // BLOCK, dtype=torch.float8_e4m3fn)
    # a tensor of nothing but zeros: any scale does
    scale = torch.where(scale == 0, 1.0, scale)
    parts = zip(*(torch.split(t.flatten(0, -2), _ROWS) for t in (weight, values, block_scale)), strict=True)
    for rows, packed, scales in parts:
        blocks = rows.float().view(len(rows), -1, BLOCK)
        found = blocks.abs().amax(-1) / (LARGEST * scale)
        found = torch.where(found == 0, 1.0, found).clamp(_SMALLEST_SCALE, _LARGEST_SCALE)
        scales.copy_(found.to(torch.float8_e4m3fn))
        codes = _encode(blocks / (scales.float() * scale)[..., None]).flatten(-2)
        packed.copy_((codes[..., 1::2] << 4) | codes[..., 0::2])
    return Nvfp4(values, block_scale, scale)


def dequantize(weight: Nvfp4) -> Tensor:
    """The numbers, ``[..., out, in]`` float32."""
    codes = torch.stack([weight.values & 15, weight.values >> 4], -1).flatten(-2)
    numbers = torch.cat([_VALUES, -_VALUES])[codes.int()]
    scales = (weight.block_scale.float() * weight.scale)[..., None]
    return (numbers.view(*scales.shape[:-1], BLOCK) * scales).flatten(-2)


def round_rows(rows: Tensor, scale: float) -> Tensor:
    """Numbers that a product reads of ``rows [..., width]``: each block of 16 scaled by its largest, float32.

    Args:
        rows: of any dtype.
        scale: that the blocks' e4m3 scales are relative to.
    """
    blocks = rows.float().view(*rows.shape[:-1], -1, BLOCK)
    found = (blocks.abs().amax(-1, keepdim=True) / (LARGEST * scale)).clamp(_SMALLEST_SCALE, _LARGEST_SCALE)
    step = found.to(torch.float8_e4m3fn).float() * scale
    numbers = torch.cat([_VALUES, -_VALUES])[_encode(blocks / step).int()]
    return (numbers * step).flatten(-2)


def _encode(numbers: Tensor) -> Tensor:
    """Nearest e2m1 codes, uint8, a tie to the even one: sign in bit 3.

    Codes are evenly spaced by a half below 2, by 1 below 4, by 2 above.
    """
    wide = numbers.abs()
    above = (wide / 2).round_().clamp_max_(3) + 4
    code = torch.where(wide < 2, (2 * wide).round_(), torch.where(wide < 4, wide.round() + 2, above))
    return code.to(torch.uint8) + ((numbers < 0).to(torch.uint8) << 3)
