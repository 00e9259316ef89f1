import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_build.kernels.tile import Tile
from trtllm_build.kernels.vocabulary.logits import TILES, chunking
from trtllm_build.kernels.vocabulary.read_out import read_out, read_out_reference, tempered_reference

SMALL = (Tile(16, 128, 16), Tile(32, 256, 64))
CAP, SCALE = 30.0, 5.0
LAST = 1 - 2**-24  # the largest float32 below 1


def inputs(rows, vocab, width, dtype, spread, bans, seed):
    """Rows of different temperatures; logits with about the given standard deviation; draws at both ends included."""
    g = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(rows, width, generator=g) * spread * width**-0.5).to(dtype)
    table = torch.randn(vocab, width, generator=g).to(dtype)
    inverse = torch.tensor([1.25, 2.5, 20.0, 0.5])[torch.randint(4, (rows,), generator=g)]
    ends = torch.tensor([0.0, LAST])[torch.randint(2, (rows,), generator=g)]
    draws = torch.where(torch.rand(rows, generator=g) < 0.3, ends, torch.rand(rows, generator=g))
    banned = None
    if bans:
        # the likeliest tokens are the ones that matter; one is left to choose at least
        likeliest = (hidden.float() @ table.float().T).argsort(-1, descending=True)[:, : min(bans, vocab - 1)]
        banned = torch.full((rows, bans), -1, dtype=torch.int32)
        banned[:, : likeliest.shape[1]] = torch.where(torch.rand(likeliest.shape, generator=g) < 0.7, likeliest, -1)
    return hidden, table, inverse, draws, banned


def check(found, expected, logits, draws, tolerance):
    """``tolerance`` of soft embeddings, relative to the row's largest."""
    top = logits.max(-1).values
    assert (top - logits.gather(1, found.argmax_ids[:, None])[:, 0] < 1e-4).all()
    probabilities = torch.softmax(logits.double(), -1)
    upper = probabilities.cumsum(-1).gather(1, found.sampled_ids[:, None])[:, 0]
    weight = probabilities.gather(1, found.sampled_ids[:, None])[:, 0]
    assert (weight > 0).all()
    assert ((upper - weight - 1e-4 <= draws) & (draws <= upper + 1e-4)).all()
    torch.testing.assert_close(found.entropy, expected.entropy, atol=1e-3, rtol=0)
    if expected.soft_embeddings is None:
        assert found.soft_embeddings is None
    else:
        assert found.soft_embeddings.dtype == expected.soft_embeddings.dtype
        wide = expected.soft_embeddings.float()
        off = (found.soft_embeddings.float() - wide).abs()
        assert (off <= tolerance * wide.abs().amax(-1, keepdim=True).clamp_min(1e-3)).all()


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 20),
    vocab=st.one_of(st.integers(1, 1500), st.sampled_from([127, 128, 129, 256, 257, 1024])),
    width=st.integers(16, 96),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    spread=st.sampled_from([0.1, 3.0, 40.0]),
    bans=st.sampled_from([0, 1, 8]),
    chunks=st.integers(1, 3),
    tile=st.sampled_from(SMALL),
    soft=st.booleans(),
    seed=st.integers(0, 999),
)
def test_read_out_is_the_references(rows, vocab, width, dtype, spread, bans, chunks, tile, soft, seed):
    hidden, table, inverse, draws, banned = inputs(rows, vocab, width, dtype, spread, bans, seed)
    arguments = hidden, table, inverse, draws, banned, CAP, SCALE, soft
    found = read_out(*arguments, chunk=chunks * tile.columns, tile=tile)
    logits = tempered_reference(hidden, table, inverse, banned, CAP)
    # exponentials are rounded to bfloat16 for the second product; float32 has its sums in another order
    check(found, read_out_reference(*arguments), logits, draws, 1e-4 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("ascending", [False, True])
def test_logits_at_both_ends_of_the_cap(ascending):
    # differences of 2 * cap / temperature = 600, far beyond float32's range of exponents, and highest logits in the
    # first or the last chunk
    table = torch.linspace(-100, 100, 700)[:, None].repeat(1, 16) * (1 if ascending else -1)
    hidden, draws = torch.ones(3, 16), torch.tensor([0.0, 0.5, LAST])
    inverse = torch.tensor([10.0, 1.0, 0.01])
    arguments = hidden, table, inverse, draws, None, CAP, SCALE, True
    found = read_out(*arguments, chunk=256, tile=SMALL[0])
    check(found, read_out_reference(*arguments), tempered_reference(hidden, table, inverse, None, CAP), draws, 1e-4)


def test_a_sub_chunk_without_an_admissible_token():
    hidden, table, inverse, draws, _ = inputs(4, 258, 32, torch.float32, 3.0, 0, 1)
    banned = torch.tensor([[256, 257, -1]] * 4, dtype=torch.int32)
    draws[0] = LAST
    found = read_out(hidden, table, inverse, draws, banned, CAP, SCALE, True, chunk=128, tile=SMALL[0])
    expected = read_out_reference(hidden, table[:256], inverse, draws, None, CAP, SCALE, True)
    check(found, expected, tempered_reference(hidden, table[:256], inverse, None, CAP), draws, 1e-4)
    swapped = torch.cat((table[256:], torch.zeros(126, 32), table[:256]))  # and as the first
    banned = torch.arange(128, dtype=torch.int32)[None].repeat(4, 1)
    found = read_out(hidden, swapped, inverse, draws, banned, CAP, SCALE, True, chunk=128, tile=SMALL[0])
    torch.testing.assert_close(found.entropy, expected.entropy, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.soft_embeddings, expected.soft_embeddings, atol=1e-3, rtol=1e-4)
    assert torch.equal(found.argmax_ids, expected.argmax_ids + 128)


def test_a_row_does_not_depend_on_the_others():
    hidden, table, inverse, draws, banned = inputs(19, 500, 48, torch.bfloat16, 3.0, 2, 5)
    tile, chunk = SMALL[0], 256
    together = read_out(hidden, table, inverse, draws, banned, CAP, SCALE, True, chunk, tile)
    for rows in (slice(0, 3), slice(17, 18)):
        parts = hidden[rows].clone(), table, inverse[rows].clone(), draws[rows].clone(), banned[rows].clone()
        alone = read_out(*parts, CAP, SCALE, True, chunk, tile)
        assert torch.equal(alone.sampled_ids, together.sampled_ids[rows])
        assert torch.equal(alone.entropy, together.entropy[rows])
        assert torch.equal(alone.soft_embeddings, together.soft_embeddings[rows])


def test_samples_follow_the_distribution():
    hidden, table, inverse, _, _ = inputs(1, 300, 16, torch.float32, 3.0, 0, 3)
    draws = (torch.arange(60) + 0.5) / 60  # one row, many draws: each token as often as its probability says
    found = read_out(
        hidden.repeat(60, 1), table, inverse.repeat(60), draws, None, CAP, SCALE, False, tile=Tile(128, 256, 16)
    )
    often = torch.bincount(found.sampled_ids, minlength=300) / 60
    logits = tempered_reference(hidden, table, inverse, None, CAP)
    assert (often - torch.softmax(logits, -1)[0]).abs().max() <= 1 / 60 + 1e-4


@pytest.mark.filterwarnings("ignore:All-NaN")  # of the interpreter's maximum
def test_numbers_that_are_none_show_in_the_entropy():
    hidden, table, inverse, draws, _ = inputs(2, 200, 16, torch.float32, 3.0, 0, 3)
    hidden[1, 3] = float("nan")
    found = read_out(hidden, table, inverse, draws, None, CAP, SCALE, True, tile=SMALL[0])
    assert found.entropy.isnan().tolist() == [False, True]
    assert ((found.argmax_ids >= 0) & (found.argmax_ids < 200)).all()
    assert ((found.sampled_ids >= 0) & (found.sampled_ids < 200)).all()


def test_a_canvas_is_one_wave_of_either_product():
    for tile in TILES:
        chunk, splits = chunking(tile, 2816)
        rows = 256 // tile.rows
        assert chunk % 128 == 0
        assert chunk // tile.columns * rows == 132
        assert rows * 2816 // tile.columns * splits in (88, 132)
