import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_build.kernels.attention.merge import merge, merge_reference


@settings(max_examples=10, deadline=None)
@given(
    splits=st.integers(2, 5),
    tokens=st.integers(1, 5),
    heads=st.integers(1, 5),
    size=st.sampled_from([16, 24]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_merged_is_the_references(splits, tokens, heads, size, dtype, seed):
    draw = torch.Generator().manual_seed(seed)
    partial = torch.randn(splits, 2, tokens, heads, size, generator=draw)
    top = 20 * torch.randn(splits, 2, tokens, heads, generator=draw)
    total = 1 + torch.rand(top.shape, generator=draw)
    empty = torch.rand(top.shape, generator=draw) < 0.3
    top[empty], total[empty], partial[empty] = -1e30, 0.0, torch.nan
    found, expected = torch.empty(2, *partial.shape[1:], dtype=dtype)
    merge(partial, top, total, found)
    merge_reference(partial, top, total, expected)
    torch.testing.assert_close(found, expected)
