import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_build.kernels.experts.dispatch import dispatch, dispatch_reference, most_row_tiles


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.sampled_from([1, 2, 37, 256, 600]),  # 600 * 8 assignments are three blocks
    experts=st.integers(1, 9),
    top_k=st.sampled_from([1, 3, 8]),
    skew=st.booleans(),
    seed=st.integers(0, 99),
)
def test_assignments_are_sorted_as_the_reference_sorts_them(tokens, experts, top_k, skew, seed):
    drawn = torch.rand(tokens, top_k, generator=torch.Generator().manual_seed(seed))
    ids = ((drawn**8 if skew else drawn) * experts).int()
    order, counts = dispatch(ids, experts)
    expected_order, expected_counts = dispatch_reference(ids, experts)
    assert torch.equal(order, expected_order)
    assert torch.equal(counts, expected_counts)


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=12), rows=st.sampled_from([1, 2, 16]))
def test_no_router_needs_more_tiles_than_are_launched(counts, rows):
    needed = sum(-(-count // rows) for count in counts)
    assert needed <= most_row_tiles(sum(counts), len(counts), rows)


def test_the_bound_is_reached():
    assert most_row_tiles(8, 128, 16) == 8  # one token: each of its experts has a tile with one row
    assert most_row_tiles(17 * 4, 4, 16) == 4 * 2  # one row more than a tile, everywhere
