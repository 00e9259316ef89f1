"""Rotary position embedding of both kinds of layer."""

import torch
from torch import Tensor

from nemo_diffgemma.architecture import Architecture


def inverse_frequencies(arch: Architecture, is_global: bool) -> Tensor:
    """Inverse frequencies ``[head_size / 2]`` float32.

    Sliding layers rotate the whole head. Global layers are "proportional": only
    ``global_partial_rotary_factor`` of the head turns, the frequencies still spread over the whole
    head, the rest stand still (transformers ``_compute_proportional_rope_parameters``).
    """
    size = arch.global_head_dim if is_global else arch.head_dim
    theta = arch.global_rope_theta if is_global else arch.rope_theta
    turning = int(arch.global_partial_rotary_factor * size // 2) if is_global else size // 2
    exponents = torch.arange(0, 2 * turning, 2, dtype=torch.float32) / size
    return torch.cat([1.0 / theta**exponents, torch.zeros(size // 2 - turning)])


def rotation(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine for ``positions [tokens]``: two ``[tokens, head_size]``, computed in float32."""
    angles = positions.float()[:, None] * frequencies[None, :]
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn ``x [tokens, heads, head_size]`` by ``cos``/``sin [tokens, head_size]``."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x * cos[:, None, :] + turned * sin[:, None, :]
