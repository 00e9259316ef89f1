import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_build.kernels.experts.feed_forward import TILES_DOWN, TILES_GATE_UP, experts, experts_reference
from trtllm_build.kernels.tile import Tile
from trtllm_build.quantization.fp8 import Fp8, rows_to_fp8

TILES = Tile(16, 32, 32), Tile(16, 64, 32)


def _inputs(tokens, number, top_k, hidden, width, seed, dtype=torch.float32, fp8=False):
    g = torch.Generator().manual_seed(seed)
    # channels, tokens and experts of different sizes: a scale taken from the wrong place has to show
    x = torch.randn(tokens, hidden, generator=g) * torch.rand(tokens, 1, generator=g).add(0.1)
    gate_up = torch.randn(number, 2 * width, hidden, generator=g) * torch.rand(number, 2 * width, 1, generator=g)
    down = torch.randn(number, hidden, width, generator=g) * torch.rand(number, hidden, 1, generator=g)
    ids = torch.rand(tokens, number, generator=g).argsort(-1)[:, :top_k].int()
    weights = torch.rand(tokens, top_k, generator=g)
    rows = [t.to(dtype) for t in (x, gate_up / hidden**0.5, down)]
    return *([rows_to_fp8(t) for t in rows] if fp8 else rows), weights, ids


def _error(found, expected):
    """Of each token, relative to the length of its row."""
    found, expected = found.float(), expected.float()
    return ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max()


shapes = {
    "tokens": st.sampled_from([1, 2, 5, 23, 40]),
    "number": st.integers(1, 6),
    "top_k": st.integers(1, 3),
    "hidden": st.sampled_from([16, 48, 100]),
    "width": st.sampled_from([8, 32, 70]),
    "seed": st.integers(0, 99),
}


@settings(max_examples=8, deadline=None)
@given(dtype=st.sampled_from([torch.float32, torch.bfloat16]), **shapes)
def test_experts_are_the_references(tokens, number, top_k, hidden, width, seed, dtype):
    inputs = _inputs(tokens, number, min(top_k, number), hidden, width, seed, dtype)
    found = experts(*inputs, dtype, *TILES)
    assert found.dtype == dtype
    # float32: sums in another order. bfloat16: three roundings of 2**-9 at most (intermediate, part, result), against
    # the reference's two, some of them the same
    assert _error(found, experts_reference(*inputs, dtype)) < (1e-5 if dtype == torch.float32 else 2**-7)


@settings(max_examples=8, deadline=None)
@given(dtype=st.sampled_from([torch.float32, torch.bfloat16]), **shapes)
def test_fp8_experts_are_the_references(tokens, number, top_k, hidden, width, seed, dtype):
    inputs = _inputs(tokens, number, min(top_k, number), hidden, width, seed, fp8=True)
    found = experts(*inputs, dtype, *TILES)
    assert found.dtype == dtype
    # Sums in another order now and then round one intermediate number the other way, to the next of fp8: 2**-3 of it.
    assert _error(found, experts_reference(*inputs, dtype)) < 0.05


def test_fp8_experts_without_such_a_number_are_the_references_closely():
    inputs = _inputs(40, 5, 2, 96, 64, 3, fp8=True)
    found, expected = experts(*inputs, torch.float32, *TILES), experts_reference(*inputs, torch.float32)
    errors = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert errors.median() < 1e-5


@pytest.mark.parametrize("fp8", [False, True])
def test_a_tokens_result_does_not_depend_on_the_others(fp8):
    x, gate_up, down, weights, ids = _inputs(40, 4, 2, 64, 48, 1, torch.float32 if fp8 else torch.bfloat16, fp8)
    together = experts(x, gate_up, down, weights, ids, torch.bfloat16, *TILES)
    for kept in (slice(0, 1), slice(7, 30)):
        part = Fp8(x.values[kept], x.scale[kept]) if fp8 else x[kept]
        alone = experts(part, gate_up, down, weights[kept], ids[kept].contiguous(), torch.bfloat16, *TILES)
        assert torch.equal(alone, together[kept])


def test_all_tokens_on_one_expert():
    x, gate_up, down, weights, ids = _inputs(70, 5, 1, 32, 16, 2)
    ids = torch.full_like(ids, 3)
    found = experts(x, gate_up, down, weights, ids, torch.float32, *TILES)
    assert _error(found, experts_reference(x, gate_up, down, weights, ids, torch.float32)) < 1e-5


@pytest.mark.parametrize("tiles", list(zip(TILES_GATE_UP, TILES_DOWN, strict=True)), ids=str)
def test_every_tile_gives_the_references_result(tiles):
    inputs = _inputs(6, 7, 3, 160, 72, 4)
    assert _error(experts(*inputs, torch.float32, *tiles), experts_reference(*inputs, torch.float32)) < 1e-5
