import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_build.kernels.experts.router import TILES, route, route_reference
from trtllm_build.kernels.tile import Tile

SMALL = Tile(16, 16, 32)
EPS = 1e-6


def _inputs(rows, width, experts, dtype, seed):
    draw = torch.Generator().manual_seed(seed)
    shapes = (rows, width), (width,), (experts, width), (experts,)
    residual, scale, projection, per_expert = (torch.randn(*s, generator=draw).to(dtype) for s in shapes)
    return residual * 3, scale, projection, per_expert.abs() + 0.5


def _check(inputs, top_k, tile, tolerance):
    residual, scale, projection, per_expert = inputs
    weights, ids = route(*inputs, top_k, EPS, tile)
    assert weights.dtype == torch.float32
    assert ids.dtype == torch.int32
    every = torch.ones_like(per_expert)
    likely, order = route_reference(residual, scale, projection, every, len(projection), EPS)
    likely = torch.empty_like(likely).scatter_(1, order.long(), likely)
    # near ties may be taken either way: the chosen experts are as likely as the reference's, place by place
    chosen = likely.gather(1, ids.long())
    torch.testing.assert_close(chosen, likely.sort(descending=True).values[:, :top_k], rtol=tolerance, atol=1e-6)
    expected = chosen / chosen.sum(1, keepdim=True) * per_expert.float()[ids]
    torch.testing.assert_close(weights, expected, rtol=tolerance, atol=1e-6)
    assert all(len(set(row)) == top_k for row in ids.tolist())


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 35),
    width=st.integers(1, 100),
    experts=st.integers(1, 20),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_routes_are_the_references(rows, width, experts, data, seed):
    top_k = data.draw(st.integers(1, experts))
    _check(_inputs(rows, width, experts, torch.float32, seed), top_k, SMALL, 2e-4)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile_routes_in_bfloat16(tile):
    # the row times the scale is rounded to bfloat16 before the product: 2**-9 of logits of about 1
    _check(_inputs(20, 150, 128, torch.bfloat16, 1), 8, tile, 0.05)


def test_of_equals_the_lower_expert_is_first():
    projection = torch.tensor([[1.0], [2.0], [1.0], [2.0], [2.0]]).repeat(1, 64)
    inputs = torch.ones(3, 64), torch.ones(64), projection, torch.ones(5)
    _, ids = route(*inputs, 4, EPS, SMALL)
    assert ids.tolist() == [[1, 3, 4, 0]] * 3


def test_a_row_does_not_depend_on_the_others():
    inputs = _inputs(19, 70, 12, torch.bfloat16, 4)
    weights, ids = route(*inputs, 3, EPS, SMALL)
    alone = route(inputs[0][17:18], *inputs[1:], 3, EPS, SMALL)
    assert torch.equal(alone[0][0], weights[17])
    assert torch.equal(alone[1][0], ids[17])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_ids_are_valid_where_the_residual_is_not_finite(value):
    residual, *rest = _inputs(2, 40, 5, torch.float32, 6)
    residual[0, 3] = value
    weights, ids = route(residual, *rest, 3, EPS, SMALL)
    assert ((ids >= 0) & (ids < 5)).all()
    assert weights[0].isnan().any()
    assert weights[1].isfinite().all()
