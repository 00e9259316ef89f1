import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.support import pages
from trtllm_build.kernels.attention.cache import append, append_reference
from trtllm_build.limits import PAGE


@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 2 * PAGE),
    kv_heads=st.integers(1, 3),
    size=st.sampled_from([16, 24]),
    padded=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_appended_is_the_references(batch, tokens, kv_heads, size, padded, dtype, seed):
    draw = torch.Generator().manual_seed(seed)
    cache, slots = pages(draw, batch, 2, kv_heads, size, dtype, longest=5 * PAGE)  # a ring, wherever it starts
    other, _ = pages(torch.Generator().manual_seed(seed), batch, 2, kv_heads, size, dtype, longest=5 * PAGE)
    k, v = torch.randn(2, batch, tokens, kv_heads, size, generator=draw)
    counts = torch.randint(0, tokens + 1, (batch,), generator=draw, dtype=torch.int32) if padded else None
    lengths = cache.lengths.clone()
    append(k, v, cache, slots, counts)
    append_reference(k, v, other, slots, counts)
    for found, expected in ((cache.keys, other.keys), (cache.values, other.values)):
        assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(cache.lengths, lengths)


def test_more_tokens_than_pages_are_refused():
    cache, slots = pages(torch.Generator().manual_seed(0), 1, 2, 1, 16, torch.float32, longest=0)
    k = torch.zeros(1, 2 * PAGE + 1, 1, 16)
    with pytest.raises(ValueError, match="129 tokens at once, but a slot's pages hold 128; append fewer"):
        append(k, k, cache, slots)
