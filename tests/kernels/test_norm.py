import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_build.kernels.norm import rms_norm, rms_norm_reference
from trtllm_build.quantization.fp8 import rows_to_fp8


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 7),
    width=st.integers(1, 600),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    has_weight=st.booleans(),
    magnitude=st.sampled_from([0.0, 1e-3, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_norm_is_the_networks(rows, width, dtype, has_weight, magnitude, seed):
    draw = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, width, generator=draw) * magnitude).to(dtype)
    weight = torch.randn(width, generator=draw).to(dtype) if has_weight else None
    found, expected = rms_norm(x, weight, 1e-6, False), rms_norm_reference(x, weight, 1e-6, False)
    assert found.dtype == dtype
    # the sum's order and the root differ in float32's last bits; in bfloat16 that may cross to the next number
    torch.testing.assert_close(found, expected, rtol=2**-7 if dtype == torch.bfloat16 else 2e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_8_bits_is_the_norm_then_quantized(dtype):
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight = torch.linspace(-2, 2, 300).to(dtype)
    found, expected = rms_norm(x, weight, 1e-6, True), rows_to_fp8(rms_norm(x, weight, 1e-6, False))
    assert torch.equal(found.values.float(), expected.values.float())
    assert torch.equal(found.scale, expected.scale)


def test_the_reference_to_8_bits_is_close():
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(2))
    found, expected = rms_norm(x, None, 1e-6, True), rms_norm_reference(x, None, 1e-6, True)
    torch.testing.assert_close(found.scale, expected.scale)
    torch.testing.assert_close(found.values.float(), expected.values.float(), rtol=2**-3, atol=2**-9)
