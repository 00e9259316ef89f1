"""The library against the reference, on the GPU at hand."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from trtllm_build.providers.tensorrt_llm.layout import Packed, pack, quantise, reference
from trtllm_build.providers.tensorrt_llm.library import FusedExperts
from trtllm_build.quantization.fp8 import LARGEST

# DiffusionGemma 26B-A4B
_EXPERTS, _HIDDEN, _WIDTH, _TOP_K = 128, 2816, 704, 8
# gelu_tanh(gate) * up, where gate and up are normal numbers: rarely more
_LARGEST_GATED = 16.0


def check(library: Path, tokens: int) -> None:
    """Print how far a layer of random experts is from the reference, and how long it takes.

    Args:
        library: As ``build`` wrote it.
        tokens: Rows of the batch.

    Raises:
        FieldError: The library cannot be loaded, or the device is not a Hopper GPU.
    """
    experts = FusedExperts(library)
    packed, x, weights, ids = _layer(tokens)
    tactic = experts.fastest(packed, x, weights, ids)
    found, expected = experts(packed, x, weights, ids, tactic).float(), reference(packed, x, weights, ids).float()
    error = ((found - expected).norm() / expected.norm()).item()
    repeatable = torch.equal(found, experts(packed, x, weights, ids, tactic).float())
    milliseconds = experts.milliseconds(packed, x, weights, ids, tactic)
    print(f"relative error {error:.2e}, repeatable {repeatable}, {milliseconds:.3f} ms with tactic {tactic}")


def _layer(tokens: int) -> tuple[Packed, Tensor, Tensor, Tensor]:
    draw = torch.Generator("cuda").manual_seed(0)

    def quantised(rows: int, columns: int) -> tuple[Tensor, Tensor]:
        weight = torch.randn(_EXPERTS, rows, columns, generator=draw, device="cuda") * columns**-0.5
        scale = weight.abs().amax(dim=(1, 2)) / LARGEST
        return quantise(weight, scale[:, None, None]), scale

    x = torch.randn(tokens, _HIDDEN, generator=draw, device="cuda").bfloat16()
    gate_up, down = quantised(2 * _WIDTH, _HIDDEN), quantised(_HIDDEN, _WIDTH)
    gated_scale = torch.tensor(_LARGEST_GATED / LARGEST, device="cuda")
    ids = torch.rand(tokens, _EXPERTS, generator=draw, device="cuda").topk(_TOP_K).indices.int()
    weights = torch.rand(tokens, _TOP_K, generator=draw, device="cuda")
    return pack(*gate_up, *down, x.float().abs().max() / LARGEST, gated_scale), x, weights, ids
