"""Attention masks of the denoise phase in training."""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_diffgemma.architecture import GLOBAL, SLIDING


def denoise_masks(
    block_start: Tensor, sequence: int, canvas: int, window: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Additive masks for one canvas an example over the keys ``[clean sequence ; canvas]``.

    The canvas sees the clean tokens strictly before its own block, and all of itself. A sliding layer sees the last
    ``window - 1`` of those clean tokens, whatever the position within the canvas: that is what transformers' sliding
    cache still holds when the block is denoised (``create_diffusion_decoder_attention_mask``).

    Args:
        block_start: position of each block's first token ``[batch]`` int64.
        sequence: number of clean keys.
        canvas: canvas length.
        window: sliding window of the architecture.
        dtype: floating dtype of the masks.

    Returns:
        By layer type, ``[batch, 1, canvas, sequence + canvas]``: 0 where attended, the dtype's minimum elsewhere.
    """
    position = torch.arange(sequence, device=block_start.device)
    before = position[None] < block_start[:, None]
    recent = before & (position[None] > block_start[:, None] - window)
    return {GLOBAL: _additive(before, canvas, dtype), SLIDING: _additive(recent, canvas, dtype)}


def _additive(clean: Tensor, canvas: int, dtype: torch.dtype) -> Tensor:
    itself = torch.ones(len(clean), canvas, dtype=torch.bool, device=clean.device)
    keep = torch.cat([clean, itself], dim=1)[:, None, None].expand(-1, 1, canvas, -1)
    return torch.zeros(keep.shape, dtype=dtype, device=clean.device).masked_fill(~keep, torch.finfo(dtype).min)


def canvas_positions(block_start: Tensor, canvas: int) -> Tensor:
    """Absolute positions of the canvas tokens: ``[batch] -> [batch, canvas]`` int64."""
    return block_start[:, None] + torch.arange(canvas, device=block_start.device)
