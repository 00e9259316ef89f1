import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_build.kernels.linear import TILES, linear, linear_reference
from trtllm_build.kernels.tile import Tile
from trtllm_build.quantization.fp8 import rows_to_fp8, widen

SMALL = Tile(16, 32, 32)


def _operands(rows, out, width, kind, seed):
    draw = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, width, generator=draw), torch.randn(out, width, generator=draw)
    if kind == "fp8":
        return rows_to_fp8(x), rows_to_fp8(weight)
    return x.to(kind), weight.to(kind)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 40),
    out=st.integers(1, 80),
    width=st.integers(1, 100),
    kind=st.sampled_from([torch.float32, torch.bfloat16, "fp8"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_products_are_the_references(rows, out, width, kind, dtype, seed):
    x, weight = _operands(rows, out, width, kind, seed)
    found, expected = linear(x, weight, dtype, SMALL), linear_reference(x, weight, torch.float32)
    assert found.dtype == dtype
    # a float32 sum of n terms, in any order, is within n * 2**-24 of the sum of magnitudes; the scales round it twice
    allowed = (width + 4) * 2**-24 * (widen(x).abs() @ widen(weight).abs().T)
    if dtype == torch.bfloat16:
        allowed += expected.abs() * 2**-8
    assert ((found.float() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("kind", [torch.bfloat16, "fp8"])
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile_gives_the_product(tile, kind):
    x, weight = _operands(130, 140, 2 * tile.depth + 8, kind, 3)
    found, expected = linear(x, weight, torch.float32, tile), linear_reference(x, weight, torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, "fp8"])
def test_a_row_does_not_depend_on_the_others(kind):
    x, weight = _operands(37, 50, 70, kind, 5)
    together = linear(x, weight, torch.float32, SMALL)
    for row in (0, 17, 36):
        one = type(x)(x.values[row : row + 1], x.scale[row : row + 1]) if kind == "fp8" else x[row : row + 1]
        assert torch.equal(linear(one, weight, torch.float32, SMALL)[0], together[row])
