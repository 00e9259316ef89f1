import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_build.kernels.residual import (
    after_attention,
    after_attention_reference,
    after_experts,
    after_experts_reference,
)
from trtllm_build.quantization.fp8 import rows_to_fp8

EPS = 1e-6


def _draw(shapes, dtype, seed):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draw).to(dtype) for shape in shapes]


def _close(found, expected):
    # one norm on another: each may land on the neighbouring number of its dtype, and sums cancel
    tolerance = 2**-6 if found.dtype == torch.bfloat16 else 5e-6
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 5),
    width=st.integers(1, 300),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_after_attention_is_the_networks(rows, width, dtype, seed):
    inputs = _draw([(rows, width)] * 2 + [(width,)] * 3, dtype, seed)
    for found, expected in zip(
        after_attention(*inputs, EPS, False, False), after_attention_reference(*inputs, EPS, False, False), strict=True
    ):
        _close(found, expected)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 5),
    width=st.integers(1, 300),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    has_next=st.booleans(),
    seed=st.integers(0, 99),
)
def test_after_experts_is_the_networks(rows, width, dtype, has_next, seed):
    *inputs, next_norm = _draw([(rows, width)] * 3 + [(width,)] * 3 + [(1,), (width,)], dtype, seed)
    last = next_norm if has_next else None
    hidden, after = after_experts(*inputs, EPS, last)
    expected, expected_after = after_experts_reference(*inputs, EPS, last)
    _close(hidden, expected)
    if has_next:
        _close(after, expected_after)
    else:
        assert after is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_8_bits_the_same_rows_are_quantized(dtype):
    inputs = _draw([(3, 200)] * 2 + [(200,)] * 3, dtype, 1)
    plain, narrow = after_attention(*inputs, EPS, False, False), after_attention(*inputs, EPS, True, True)
    assert torch.equal(plain[0], narrow[0])
    inputs = _draw([(3, 200)] * 3 + [(200,)] * 3 + [(1,)], dtype, 2)
    norm = torch.linspace(0.5, 2, 200).to(dtype)
    plain += after_experts(*inputs, EPS, norm, False)[1:]
    narrow += after_experts(*inputs, EPS, norm, True)[1:]
    for x, found in zip(plain[1:], narrow[1:], strict=True):
        expected = rows_to_fp8(x)
        assert torch.equal(found.values.float(), expected.values.float())
        assert torch.equal(found.scale, expected.scale)


def test_together_they_are_a_layer_of_the_network():
    from trtllm_build.network import pieces
    from trtllm_build.network.norm import rms_norm

    width = 60
    hidden, attended, dense, sparse, *norms = _draw([(4, width)] * 4 + [(width,)] * 6, torch.float32, 3)
    scalar = torch.tensor([0.7])
    post_attention, pre_mlp, pre_experts, post_mlp, post_experts, post_feedforward = norms
    residual, mlp, experts = after_attention(hidden, attended, post_attention, pre_mlp, pre_experts, EPS, False, False)
    found, _ = after_experts(residual, dense, sparse, post_mlp, post_experts, post_feedforward, scalar, EPS)
    expected = hidden + rms_norm(attended, post_attention, EPS)
    _close(mlp, rms_norm(expected, pre_mlp, EPS))
    _close(experts, rms_norm(expected, pre_experts, EPS))
    normed = rms_norm(dense, post_mlp, EPS)
    _close(found, pieces.after_experts(expected, normed, sparse, post_experts, post_feedforward, scalar, eps=EPS)[0])
