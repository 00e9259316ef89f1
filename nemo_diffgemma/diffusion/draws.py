"""Stateless randomness: every draw is a function of (request seed, canvas, step, position).

A request's tokens therefore do not depend on who shares its batch, and a canvas can be computed again.
"""

import numpy as np
import torch
from torch import Tensor

SAMPLE, NOISE = 0, 1  # what a draw is for
INITIAL_STEP = 0  # denoising steps count from 1


def uniforms(seed: int, canvas: int, step: int, purpose: int, length: int) -> Tensor:
    """``length`` draws in [0, 1), float32, one a canvas position.

    Philox-4x64 (Salmon et al., SC 2011) keyed by the seed, its counter set from the other arguments:
    no state is kept between calls. A shorter ``length`` gives a prefix of a longer one.

    Args:
        seed: the request's seed, 0 to 2**64 - 1.
        canvas: index of the canvas within the request.
        step: denoising step, from 1; :data:`INITIAL_STEP` for the noise a canvas starts from.
        purpose: :data:`SAMPLE` or :data:`NOISE`.
        length: number of draws.
    """
    # the low counter word runs inside this call; the others say which call it is
    counter = np.array([0, canvas, step, purpose], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=seed, counter=counter))
    return torch.from_numpy(generator.random(length, dtype=np.float32))


def uniform_to_token(draws: Tensor, vocab_size: int) -> Tensor:
    """Uniform token ids (int64) from draws in [0, 1).

    A float32 draw has 24 bits: with the released 2**18 tokens, each token gets exactly 64 of the possible draws.
    """
    return (draws.double() * vocab_size).long().clamp_max(vocab_size - 1)
