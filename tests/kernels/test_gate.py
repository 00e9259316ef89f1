import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_build.kernels.gate import gelu_gated, gelu_gated_reference
from trtllm_build.quantization.fp8 import rows_to_fp8


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 6),
    width=st.integers(1, 400),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    magnitude=st.sampled_from([0.0, 1e-3, 1.0, 20.0]),
    seed=st.integers(0, 99),
)
def test_gated_rows_are_the_references(rows, width, dtype, magnitude, seed):
    x = (torch.randn(rows, 2 * width, generator=torch.Generator().manual_seed(seed)) * magnitude).to(dtype)
    found, expected = gelu_gated(x, False), gelu_gated_reference(x, False)
    assert found.dtype == dtype
    # where tanh is close to -1, torch's 1 + tanh has lost digits that the sigmoid keeps: 2**-24 of gate * up
    slack = x.float().abs().chunk(2, dim=-1)
    allowed = slack[0] * slack[1] * 2**-22 + expected.float().abs() * (2**-7 if dtype == torch.bfloat16 else 2e-6)
    assert ((found.float() - expected.float()).abs() <= allowed + 1e-30).all()


@pytest.mark.parametrize("gate", [-1e4, -300.0, -20.0, 0.0, 20.0, 300.0, 1e4])
def test_large_gates_are_finite(gate):
    found = gelu_gated(torch.tensor([[gate, 2.0]]), False)
    assert found.item() == pytest.approx(2 * max(gate, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_8_bits_the_same_rows_are_quantized(dtype):
    x = torch.randn(4, 302, generator=torch.Generator().manual_seed(1)).to(dtype)
    found, expected = gelu_gated(x, True), rows_to_fp8(gelu_gated(x, False))
    assert torch.equal(found.values.float(), expected.values.float())
    assert torch.equal(found.scale, expected.scale)
