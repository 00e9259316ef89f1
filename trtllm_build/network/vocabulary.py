"""From hidden states to tokens: the tied output projection and what a denoising step reads off it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_diffgemma.diffusion import sampler


@dataclass(frozen=True)
class ReadOut:
    """What one denoising step of a canvas yields; nothing of vocabulary width.

    Args:
        argmax_ids: ``[canvas]`` int64.
        sampled_ids: ``[canvas]`` int64.
        entropy: ``[canvas]`` float32, nats, of the tempered distribution.
        soft_embeddings: ``[canvas, hidden]``: expected embedding under the tempered distribution.
    """

    argmax_ids: Tensor
    sampled_ids: Tensor
    entropy: Tensor
    soft_embeddings: Tensor


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """``cap * tanh(logits / cap)`` in float32."""
    return torch.tanh(logits.float() / cap) * cap


def capped_logits(hidden: Tensor, embedding: Tensor, cap: float) -> Tensor:
    """Soft-capped logits ``[..., vocab]`` float32 of normed hidden states ``[..., hidden]``."""
    return soft_cap(F.linear(hidden, embedding), cap)


def soft_embeddings(tempered: Tensor, embedding: Tensor, scale: float) -> Tensor:
    """``softmax(tempered) @ embedding * scale``: ``[..., vocab] -> [..., hidden]`` in the embedding's dtype."""
    probabilities = torch.softmax(tempered, dim=-1, dtype=torch.float32).to(embedding.dtype)
    return torch.matmul(probabilities, embedding) * torch.tensor(scale, dtype=embedding.dtype)


def read_out(hidden: Tensor, embedding: Tensor, cap: float, scale: float, temperature: float, draws: Tensor) -> ReadOut:
    """Argmax, sample, entropy and next soft embedding at every position of one canvas.

    Args:
        hidden: normed hidden states ``[canvas, hidden]``.
        embedding: ``[vocab, hidden]``.
        cap: soft-cap of the logits.
        scale: of embeddings, sqrt(hidden).
        temperature: of this step.
        draws: ``[canvas]`` uniforms in [0, 1).
    """
    tempered = capped_logits(hidden, embedding, cap) / temperature
    return ReadOut(
        argmax_ids=tempered.argmax(-1),
        sampled_ids=sampler.sample(tempered, draws),
        entropy=sampler.entropy(tempered),
        soft_embeddings=soft_embeddings(tempered.to(embedding.dtype), embedding, scale),
    )
