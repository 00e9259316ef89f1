"""How a clean block becomes a noisy one in training."""

import torch
from torch import Tensor

MIN_NOISE = 1e-3


def corrupt(clean: Tensor, supervised: Tensor, vocab_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Replace supervised tokens with uniform vocabulary tokens, with one probability t an example.

    ``t ~ U(1e-3, 1)``; there is no mask token (NeMo AutoModel ``corrupt_uniform_random``).

    Args:
        clean: ``[batch, canvas]`` token ids.
        supervised: ``[batch, canvas]`` bool; other positions stay as they are.
        vocab_size: number of tokens to draw from.
        generator: source of every draw.

    Returns:
        Noisy ids ``[batch, canvas]`` and t ``[batch]`` float32.
    """
    batch = clean.shape[0]
    t = MIN_NOISE + (1 - MIN_NOISE) * torch.rand(batch, generator=generator)
    hit = (torch.rand(clean.shape, generator=generator) < t[:, None]) & supervised
    noise = torch.randint(0, vocab_size, clean.shape, generator=generator)
    return torch.where(hit, noise, clean), t
