import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.support import pages
from trtllm_build.kernels.attention.paged import attend, attend_reference
from trtllm_build.kernels.attention.tile import TILES, AttentionTile, tiles_for
from trtllm_build.kernels.machine_code import SHARED_BYTES
from trtllm_build.limits import PAGE
from trtllm_build.network.attention import attend_causal

SMALL = (AttentionTile(64, 32, 16, splits=1), AttentionTile(32, 64, 32, splits=3), AttentionTile(64, 64, 64, splits=2))


def _new(draw, batch, tokens, kv_heads, group, size, dtype=torch.float32):
    q = torch.randn(batch, tokens, kv_heads * group, size, generator=draw)
    k, v = torch.randn(2, batch, tokens, kv_heads, size, generator=draw)
    return [(x / scale).to(dtype) for x, scale in ((q, size**0.5), (k, 1), (v, 1))]


@settings(max_examples=10, deadline=None)
@given(
    batch=st.integers(1, 2),
    tokens=st.integers(1, 40),
    kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 2, 3, 8]),
    size=st.sampled_from([16, 24, 32, 48]),
    window=st.sampled_from([None, 1, 40, PAGE + 1, 2 * PAGE]),
    causal=st.booleans(),
    padded=st.booleans(),
    tile=st.sampled_from(SMALL),
    seed=st.integers(0, 99),
)
def test_attended_is_the_references(batch, tokens, kv_heads, group, size, window, causal, padded, tile, seed):
    draw = torch.Generator().manual_seed(seed)
    ring = 3 if window is None else -(-(window - 1 + PAGE) // PAGE)
    longest = ring * PAGE * (1 if window is None else 3)
    cache, slots = pages(draw, batch, ring, kv_heads, size, torch.float32, longest)
    q, k, v = _new(draw, batch, tokens, kv_heads, group, size)
    counts = torch.randint(0, tokens + 1, (batch,), generator=draw, dtype=torch.int32) if padded else None
    for b, count in enumerate([] if counts is None else counts.tolist()):
        k[b, count:], v[b, count:] = torch.nan, torch.nan
    found = attend(q, k, v, cache, slots, window, causal, counts, tile)
    expected = attend_reference(q, k, v, cache, slots, window, causal, counts)
    assert found.isfinite().all()  # rows of tokens that are not real included
    for b in range(batch):
        real = tokens if counts is None else int(counts[b])
        # sums of some hundred numbers of magnitude 1 in another order
        torch.testing.assert_close(found[b, :real], expected[b, :real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", [TILES[0], TILES[4]])
@pytest.mark.parametrize(("group", "kv_heads", "size", "window"), [(2, 2, 256, 100), (8, 1, 512, None)])
def test_released_heads_in_bfloat16(tile, group, kv_heads, size, window):
    draw = torch.Generator().manual_seed(1)
    cache, slots = pages(draw, 1, 3, kv_heads, size, torch.bfloat16, 3 * PAGE)
    q, k, v = _new(draw, 1, 20, kv_heads, group, size, torch.bfloat16)
    found = attend(q, k, v, cache, slots, window, True, None, tile)
    expected = attend_reference(*(x.float() for x in (q, k, v)), cache, slots, window, True)
    # weights and result are rounded to 8 bits: half a step each of values that reach 4
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=4 * 2**-9)


@pytest.mark.parametrize("causal", [False, True])
def test_a_sequence_does_not_depend_on_its_batch(causal):
    draw = torch.Generator().manual_seed(2)
    cache, slots = pages(draw, 3, 3, 2, 32, torch.float32, 3 * PAGE)
    q, k, v = _new(draw, 3, 20, 2, 2, 32)
    together = attend(q, k, v, cache, slots, 70, causal, None, SMALL[1])
    for b in range(3):
        one = slice(b, b + 1)
        assert torch.equal(attend(q[one], k[one], v[one], cache, slots[one], 70, causal, None, SMALL[1]), together[one])


@pytest.mark.parametrize("window", [None, 50])
def test_reference_encodes_as_the_network_on_the_cpu(window):
    draw = torch.Generator().manual_seed(3)
    cache, slots = pages(draw, 1, 3, 2, 16, torch.float32, 3 * PAGE)
    length = int(cache.lengths[slots[0]])
    position = torch.arange(max(0, length - 49) if window else 0, length)
    page = cache.table[slots[0], position // PAGE].long()
    q, k, v = _new(draw, 1, 30, 2, 4, 16)
    keys, values = (
        torch.cat([cached[page, position % PAGE], x[0]]) for cached, x in ((cache.keys, k), (cache.values, v))
    )
    found = attend_reference(q, k, v, cache, slots, window, True)[0]
    torch.testing.assert_close(found, attend_causal(q[0], keys, values, window), rtol=1e-5, atol=1e-5)


def test_the_default_tile_fits_every_gpu():
    for sm in SHARED_BYTES:
        for size in (256, 512):
            assert TILES[0] in tiles_for(size, sm)
    assert AttentionTile(64, 32, 512, splits=4, warps=8, stages=2) not in tiles_for(512, 121)
