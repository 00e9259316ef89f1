"""What a training step asks of one example: which block, how noisy, self-conditioned or not.

Everything drawn is a function of (seed, purpose, step, example). A batch may therefore be divided among any number of
processes, and a run resumed at any step, without changing a single draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemo_diffgemma.diffusion.corruption import corrupt

TRAIN, VALIDATE = 0, 1  # what a draw is for


@dataclass(frozen=True)
class Problem:
    """One block to denoise: its index in the response, clean and noisy ids ``[canvas]``, the self-conditioning coin."""

    block: int
    clean: Tensor
    noisy: Tensor
    self_condition: bool


def draw_problem(
    response: list[int],
    canvas: int,
    vocab_size: int,
    self_conditioning_probability: float,
    key: tuple[int, int, int, int],
) -> Problem:
    """Choose one random block of ``response`` and corrupt it.

    Args:
        response: token ids, a whole number of canvases.
        canvas: canvas length.
        vocab_size: number of tokens noise is drawn from.
        self_conditioning_probability: chance that this example sees its own first prediction.
        key: seed, purpose (:data:`TRAIN` or :data:`VALIDATE`), step, example.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
    block = int(torch.randint(len(response) // canvas, (1,), generator=generator))
    coin = bool(torch.rand(1, generator=generator) < self_conditioning_probability)
    clean = torch.tensor(response[block * canvas : (block + 1) * canvas])
    noisy, _ = corrupt(clean[None], torch.ones(1, canvas, dtype=torch.bool), vocab_size, generator)
    return Problem(block, clean, noisy[0], coin)
