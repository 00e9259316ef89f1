import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_build.kernels.fp8 import quantize_rows
from trtllm_build.quantization.fp8 import rows_to_fp8, widen


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 300),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    magnitude=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_quantized_rows_are_the_references(rows, width, dtype, magnitude, seed):
    x = (torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * magnitude).to(dtype)
    found, expected = quantize_rows(x), rows_to_fp8(x)
    assert torch.equal(found.values.float(), expected.values.float())
    assert torch.equal(found.scale, expected.scale)


def test_rounding_is_within_the_formats_half_step():
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    found = quantize_rows(x)
    # e4m3 has 3 mantissa bits: half a step is 2**-4 of a normal number, and 2**-10 scales of a subnormal one
    allowed = torch.maximum(x.abs() * 2**-4, found.scale[:, None] * 2**-10)
    assert ((widen(found) - x).abs() <= allowed * (1 + 1e-6)).all()
