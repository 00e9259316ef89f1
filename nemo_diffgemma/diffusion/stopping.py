"""When a canvas is finished, and what of it is text."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor


def stable(argmax_history: Tensor, argmax_ids: Tensor) -> Tensor:
    """Whether a canvas's argmax equals each of its last ones.

    Args:
        argmax_history: ``[batch, stability_threshold, canvas]`` token ids, -1 where there was no step yet.
        argmax_ids: ``[batch, canvas]`` token ids of this step.

    Returns:
        ``[batch]`` bool; all true for a threshold of 0.
    """
    return (argmax_history == argmax_ids[:, None]).all(-1).all(-1)


def confident(entropies: Tensor, confidence_threshold: Tensor | float) -> Tensor:
    """Whether mean entropy (nats, ``[batch, canvas]``) is below the threshold: ``[batch]`` bool."""
    return entropies.mean(-1) < confidence_threshold


def push(argmax_history: Tensor, argmax_ids: Tensor) -> Tensor:
    """History with this step's argmax appended and the oldest dropped; shape unchanged."""
    if argmax_history.shape[1] == 0:
        return argmax_history
    return torch.cat([argmax_history[:, 1:], argmax_ids[:, None]], dim=1)


def text_length(ids: Sequence[int], end_ids: Collection[int]) -> int | None:
    """Number of tokens before the first end-of-sequence token; None when there is none."""
    return next((i for i, token in enumerate(ids) if token in end_ids), None)
