"""What one denoising step does with the distribution at each canvas position.

:func:`entropy` and :func:`sample` are the definitions, over logits of the whole vocabulary: an engine computes them in
chunks, and is tested against these.
"""

import torch
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of ``softmax(logits)``: ``[..., vocab] -> [...]`` float32."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    return -(log_p.exp() * log_p).sum(-1)


def sample(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One token a position by inverting the cumulative distribution.

    Args:
        logits: tempered logits ``[..., vocab]``.
        uniforms: one draw in [0, 1) a position, ``[...]`` float32.

    Returns:
        Token ids ``[...]`` int64: the first token whose cumulative probability exceeds the draw.
    """
    cumulative = torch.softmax(logits.float(), dim=-1).cumsum(-1)
    # the sum may fall short of 1 by rounding: scale the draw, so that no draw runs past the last token
    target = uniforms[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, target, right=True)[..., 0].clamp_max(logits.shape[-1] - 1)


def accept(entropies: Tensor, entropy_bound: Tensor | float) -> Tensor:
    """Positions whose sampled token is kept in this step.

    In ascending entropy, while the entropies accepted before sum to at most the bound; the most
    certain position is always accepted (entropy-bounded unmasking, arXiv 2505.24857;
    transformers ``EntropyBoundSampler.accept_canvas``).

    Args:
        entropies: ``[batch, canvas]`` nats.
        entropy_bound: scalar or ``[batch, 1]``, nats.

    Returns:
        ``[batch, canvas]`` bool.
    """
    ordered, order = torch.sort(entropies, dim=-1)
    keep = ordered.cumsum(-1) - ordered <= entropy_bound
    return torch.zeros_like(keep).scatter(-1, order, keep)
