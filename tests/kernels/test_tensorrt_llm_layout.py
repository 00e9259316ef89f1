"""What TensorRT-LLM's fused experts compute from the packed tensors is what the model's experts compute."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nemo_diffgemma.errors import FieldError
from trtllm_build.providers.tensorrt_llm.layout import Packed, pack, quantise, reference
from trtllm_build.quantization.fp8 import DTYPE, LARGEST

# e4m3 keeps three bits: a rounded number is off by a sixteenth at most and by a fortieth in the mean
FP8_ERROR = 0.06


@dataclass(frozen=True)
class Layer:
    """Quantised experts as a checkpoint holds them, one batch for them, and what the model makes of it."""

    gate_up: Tensor
    gate_up_scale: Tensor
    down: Tensor
    down_scale: Tensor
    x: Tensor
    weights: Tensor
    ids: Tensor
    input_scale: Tensor
    gated_scale: Tensor
    expected: Tensor

    def packed(self) -> Packed:
        return pack(self.gate_up, self.gate_up_scale, self.down, self.down_scale, self.input_scale, self.gated_scale)

    def error(self, packed: Packed) -> float:
        """Of the kernel's result, as a share of the model's."""
        found = reference(packed, self.x, self.weights, self.ids).double()
        return ((found - self.expected).norm() / self.expected.norm()).item()


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """One scale per expert."""
    scale = weight.abs().amax(dim=(1, 2)) / LARGEST
    return quantise(weight, scale[:, None, None]), scale


def layer(seed: int, tokens: int, hidden: int, width: int, experts: int, top_k: int) -> Layer:
    """The model's own arithmetic in float64, with nothing rounded but what the checkpoint and the input already are."""
    draw = torch.Generator().manual_seed(seed)
    # near 1: of small numbers, and of large ones with the same signs, gate and up could be swapped unnoticed
    size = 2.0 ** torch.randint(-1, 2, (experts, 1, 1), generator=draw)
    gate_up, gate_up_scale = quantised(torch.randn(experts, 2 * width, hidden, generator=draw) * size * hidden**-0.5)
    down, down_scale = quantised(torch.randn(experts, hidden, width, generator=draw) / size**2)
    x = torch.randn(tokens, hidden, generator=draw).bfloat16()
    input_scale = x.float().abs().max() / LARGEST
    ids = torch.rand(tokens, experts, generator=draw).topk(top_k).indices
    weights = torch.rand(tokens, top_k, generator=draw)

    inputs = quantise(x, input_scale).double() * input_scale
    gated_scale, expected = torch.full((experts,), 1e-6), torch.zeros(tokens, hidden, dtype=torch.float64)
    for token in range(tokens):
        for weight, expert in zip(weights[token], ids[token].tolist(), strict=True):
            both = gate_up[expert].double() * gate_up_scale[expert] @ inputs[token]
            gated = torch.nn.functional.gelu(both[:width], approximate="tanh") * both[width:]
            gated_scale[expert] = max(gated_scale[expert], gated.abs().max() / LARGEST)
            expected[token] += weight * (down[expert].double() * down_scale[expert] @ gated)
    return Layer(gate_up, gate_up_scale, down, down_scale, x, weights, ids, input_scale, gated_scale, expected)


def layers(tokens: int = 1, width: int = 16) -> st.SearchStrategy[Layer]:
    """Layers of at least so many tokens and so wide."""
    return st.builds(
        layer,
        seed=st.integers(0, 2**31),
        tokens=st.integers(tokens, 9),
        hidden=st.sampled_from([16, 48, 176]),
        width=st.sampled_from([w for w in (16, 32, 144) if w >= width]),
        experts=st.integers(2, 6),
        top_k=st.integers(1, 2),
    )


@settings(max_examples=60, deadline=None)
@given(layers())
def test_kernel_computes_the_models_experts(case: Layer) -> None:
    assert case.error(case.packed()) < FP8_ERROR


@settings(max_examples=20, deadline=None)
@given(layers())
def test_one_scale_for_all_experts_is_that_scale_for_each(case: Layer) -> None:
    one = case.gated_scale.max()
    each = replace(case, gated_scale=one.repeat(len(case.down)))
    assert case.error(replace(case, gated_scale=one).packed()) == case.error(each.packed())


@settings(max_examples=20, deadline=None)
@given(layers(tokens=8, width=144))
def test_swapped_halves_and_wrong_scales_show(case: Layer) -> None:
    packed = case.packed()
    swapped = packed.up_gate.view(torch.uint8).roll(packed.down.shape[2], dims=1).view(DTYPE)
    wrong = {
        "gate before up": replace(packed, up_gate=swapped),
        "the weight's scale without the input's": replace(packed, up_gate_scale=case.gate_up_scale),
        "the second product's weight scale alone": replace(packed, down_scale=case.down_scale),
        "multiplied by the scale, not by its inverse": replace(packed, quantise=packed.quantise.reciprocal()),
    }
    for mistake, changed in wrong.items():
        assert case.error(changed) > 3 * FP8_ERROR, mistake


def test_what_the_kernel_cannot_take_is_refused_by_name() -> None:
    case = layer(seed=0, tokens=2, hidden=32, width=16, experts=2, top_k=1)
    with pytest.raises(FieldError, match=r"width: 8 .* multiple of 16"):
        replace(case, down=case.down[:, :, :8]).packed()
    with pytest.raises(FieldError, match=r"gate_up.dtype: torch.bfloat16 .* torch.float8_e4m3fn"):
        replace(case, gate_up=case.gate_up.bfloat16()).packed()
    with pytest.raises(FieldError, match=r"down_scale.shape: \(2, 32\) .* \(2,\)"):
        replace(case, down_scale=torch.ones(2, 32)).packed()
