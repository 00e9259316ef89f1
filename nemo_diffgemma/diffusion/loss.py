"""The training objective: block diffusion plus next-token prediction of the encoder."""

import torch.nn.functional as F
from torch import Tensor


def diffusion_loss(logits: Tensor, clean: Tensor, supervised: Tensor, total: Tensor) -> Tensor:
    """Cross-entropy over all supervised canvas positions, corrupted or not, over ``total``.

    No 1/t weight (NeMo AutoModel's recipe).

    Args:
        logits: soft-capped ``[batch, canvas, vocab]``.
        clean: ``[batch, canvas]`` token ids.
        supervised: ``[batch, canvas]`` bool.
        total: number of supervised positions over the global batch (all ranks), a scalar; 0 gives loss 0.
    """
    losses = F.cross_entropy(logits.flatten(0, 1).float(), clean.flatten(), reduction="none").view(clean.shape)
    return (losses * supervised).sum() / total.clamp_min(1)


def autoregressive_loss(logits: Tensor, ids: Tensor, valid: Tensor, total: Tensor) -> Tensor:
    """Next-token cross-entropy of the encoder over every pair of valid tokens, over ``total`` pairs.

    Args:
        logits: soft-capped ``[batch, sequence, vocab]``.
        ids: ``[batch, sequence]`` token ids.
        valid: ``[batch, sequence]`` bool, false at padding.
        total: number of valid pairs over the global batch, a scalar; 0 gives loss 0.
    """
    pairs = valid[:, 1:] & valid[:, :-1]
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return (losses.view(pairs.shape) * pairs).sum() / total.clamp_min(1)
