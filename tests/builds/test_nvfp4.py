"""NVFP4 weights: ModelOpt's, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modelopt.torch.quantization.qtensor import NVFP4QTensor

from nemo_diffgemma.errors import FieldError
from trtllm_build.quantization.nvfp4 import BLOCK, dequantize, quantize_nvfp4


def check(weight: torch.Tensor) -> None:
    found = quantize_nvfp4(weight)
    expected, block_scale, scale = NVFP4QTensor.quantize(weight.clone(), BLOCK)
    assert torch.equal(found.values, expected._quantized_data)
    assert torch.equal(found.block_scale.view(torch.uint8), block_scale.view(torch.uint8))
    assert torch.equal(found.scale, scale)
    wide = expected.dequantize(torch.float32, scale=block_scale, double_scale=scale, block_sizes={-1: BLOCK})
    assert torch.equal(dequantize(found), wide)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(1, 16), (7, 48), (130, 32), (3, 5, 64), (2, 200, 16)]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-6, 0.02, 1.0, 300.0]),
    st.sampled_from([1, 3, 9]),
)
def test_modelopts_bytes(shape: tuple[int, ...], dtype: torch.dtype, seed: int, magnitude: float, spread: int) -> None:
    """Of any range: a power spreads magnitudes, so that small blocks lie beside large ones."""
    g = torch.Generator().manual_seed(seed)
    check((torch.randn(shape, generator=g) ** spread * magnitude).to(dtype))


def test_ties_and_zeros() -> None:
    """Halves between two numbers go to the even code; a block of zeros has a scale that is safe to divide by."""
    check(torch.cat([torch.arange(-96, 96).float() / 16, torch.zeros(64)]).view(4, 64))


def test_the_largest_of_a_tensor_is_exact() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    largest = weight.abs().argmax()
    assert dequantize(quantize_nvfp4(weight)).flatten()[largest] == pytest.approx(float(weight.flatten()[largest]))


def test_a_width_that_is_no_whole_number_of_blocks_is_refused() -> None:
    with pytest.raises(FieldError, match=r"nvfp4 of a weight 24 wide.*multiples of 16.*precision=fp8"):
        quantize_nvfp4(torch.ones(4, 24))


def test_bytes_of_a_matrix() -> None:
    quantized = quantize_nvfp4(torch.ones(6, 32))
    assert quantized.values.nbytes + quantized.block_scale.nbytes == 6 * 32 // 2 + 6 * 32 // BLOCK
