"""The streaming pass over the vocabulary against a plain one of full width.

Hidden states and embeddings are small multiples of a power of two, so that every product is exact in float32 however
it is summed: what differs is the pass, not the rounding of its inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_diffgemma.diffusion import draws as stateless
from nemo_diffgemma.diffusion import sampler, stopping
from trtllm_build.backends.aot import load_pieces
from trtllm_build.bundle import Bundle
from trtllm_build.contract import ReadOut, TokenChoice
from trtllm_build.network import vocabulary
from trtllm_build.network.linear import is_large
from trtllm_build.network.pieces import statistics
from trtllm_build.network.vocabulary import CHUNK, Vocabulary
from trtllm_build.spec import PIECES

CAP = 30.0
TEMPERATURES = (0.05, 0.4, 0.8, 2.0)
SHARPNESS = (2**-6, 0.25, 1.0, 4.0, 16.0)  # of a row: from flat to nearly certain
EDGE = 1e-6  # a draw this near to the boundary between two tokens may fall to either
LAST_DRAW = 1 - 2**-24  # the largest float32 below 1


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks of 256 tokens: a few hundred tokens are several."""
    monkeypatch.setattr(vocabulary, "CHUNK", 256)
    return 256


@dataclass(frozen=True)
class Case:
    """A vocabulary and one canvas's hidden states."""

    vocabulary: Vocabulary
    table: Tensor
    hidden: Tensor
    draws: Tensor

    def read_out(self, temperature: float, choices: list[TokenChoice] | None = None, soft: bool = True) -> ReadOut:
        return self.vocabulary.read_out(self.hidden, temperature, self.draws, soft, choices)


def case(size: int, seed: int = 0, rows: int = 40, width: int = 16, dtype: torch.dtype = torch.float32) -> Case:
    """Rows of every sharpness; the first two draws are the ends of their range."""
    g = torch.Generator().manual_seed(1000 * seed + size)

    def grid(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=g) * 64).round().clamp(-255, 255) / 64

    sharpness = torch.tensor(SHARPNESS).repeat(-(-rows // len(SHARPNESS)))[:rows]
    table = (grid(size, width) / 4).to(dtype)
    hidden = (grid(rows, width) * sharpness[:, None]).to(dtype)
    draws = torch.rand(rows, generator=g)
    draws[:2] = torch.tensor([0.0, LAST_DRAW])[:rows]
    return Case(Vocabulary(table, CAP, width**0.5, partial(statistics, cap=CAP)), table, hidden, draws)


@dataclass(frozen=True)
class Plain:
    """Everything at once and at full width, in float64 from the float32 logits on."""

    tempered: Tensor
    probabilities: Tensor
    argmax_ids: Tensor
    sampled_ids: Tensor
    entropy: Tensor
    soft_embeddings: Tensor


def plain(case: Case, temperature: float, open_to: Tensor | None = None) -> Plain:
    """``open_to [rows, vocab]``: the tokens that each row may choose."""
    products = (case.hidden.double() @ case.table.double().T).to(case.table.dtype).float()
    tempered = torch.tanh(products / CAP) * CAP * torch.tensor(1.0 / temperature)
    if open_to is not None:
        tempered = tempered.masked_fill(~open_to, float("-inf"))
    p = torch.softmax(tempered.double(), -1)
    sampled = torch.searchsorted(p.cumsum(-1), case.draws.double()[:, None], right=True)[:, 0]
    entropy = -torch.special.xlogy(p, p).sum(-1)
    soft = p @ case.table.double() * case.hidden.shape[1] ** 0.5
    return Plain(tempered, p, tempered.argmax(-1), sampled, entropy, soft)


def assert_equal(found: ReadOut, expected: Plain, draws: Tensor) -> None:
    assert torch.equal(found.argmax_ids, expected.argmax_ids)
    assert found.entropy.dtype == torch.float32
    torch.testing.assert_close(found.entropy.double(), expected.entropy, atol=1e-5, rtol=0)
    assert found.soft_embeddings is not None
    torch.testing.assert_close(found.soft_embeddings.double(), expected.soft_embeddings, atol=1e-5, rtol=0)
    assert_samples(found.sampled_ids, expected, draws, EDGE)
    assert (found.sampled_ids != expected.sampled_ids)[2:].sum() <= 1  # the first two draws are at an edge themselves
    assert_decisions(found, expected)


def assert_samples(sampled: Tensor, expected: Plain, draws: Tensor, edge: float) -> None:
    """Those that are not the expected token are of a draw within ``edge`` of the token they are."""
    upper = expected.probabilities.cumsum(-1).gather(-1, sampled[:, None])[:, 0]
    chance = expected.probabilities.gather(-1, sampled[:, None])[:, 0]
    outside = torch.maximum(upper - chance - draws.double(), draws.double() - upper)
    different = sampled != expected.sampled_ids
    assert (outside[different] <= edge).all(), outside[different]


def assert_decisions(found: ReadOut, expected: Plain) -> None:
    """What is accepted, and whether the canvas stops."""
    ours, theirs = found.entropy[None], expected.entropy.float()[None]
    for bound in (0.0, 0.1, 1.0, 20.0):
        assert torch.equal(sampler.accept(ours, bound), sampler.accept(theirs, bound))
    for threshold in (0.005, 0.5, 5.0):
        assert torch.equal(stopping.confident(ours, threshold), stopping.confident(theirs, threshold))


# -- the whole vocabulary -------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 97, 128, 129, 255, 256, 257, 384, 512, 600, 1000])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_equals_full_width(small_chunks: int, size: int, temperature: float) -> None:
    """Sizes on, below and above the bounds of sub-chunks and chunks; rows from flat to certain."""
    c = case(size)
    assert_equal(c.read_out(temperature), plain(c, temperature), c.draws)


@pytest.mark.parametrize("size", [CHUNK, CHUNK + 1, 2 * CHUNK + 5])
@pytest.mark.parametrize("temperature", [0.05, 0.8])
def test_equals_full_width_with_the_real_chunk(size: int, temperature: float) -> None:
    """Wide enough that products of a whole chunk go to oneDNN, with tables that begin inside another."""
    c = case(size, rows=20, width=64)
    assert is_large(c.table[:CHUNK])
    assert_equal(c.read_out(temperature), plain(c, temperature), c.draws)


@pytest.mark.parametrize("size", [97, 257, 1000])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_equals_the_sampler_of_training_and_checks(small_chunks: int, size: int, temperature: float) -> None:
    """The float32 functions of :mod:`nemo_diffgemma.diffusion.sampler`, which are checked against transformers."""
    c = case(size, seed=3)
    found, expected = c.read_out(temperature), plain(c, temperature)
    torch.testing.assert_close(found.entropy, sampler.entropy(expected.tempered), atol=1e-5, rtol=0)
    middle = slice(2, None)
    same = found.sampled_ids[middle] == sampler.sample(expected.tempered, c.draws)[middle]
    assert same.float().mean() > 0.95
    torch.testing.assert_close(
        found.soft_embeddings, c.vocabulary.soft_embeddings(expected.tempered), atol=1e-5, rtol=0
    )


def test_logits_for_checking_are_those_of_the_pass(small_chunks: int) -> None:
    c = case(300)
    assert torch.equal(c.vocabulary.logits(c.hidden), plain(c, 1.0).tempered)


@pytest.mark.parametrize("distance", [8.0, 12.0, 16.0, 20.0, 25.0])
@pytest.mark.parametrize("second", [1, 200, 500])
def test_a_tiny_entropy_keeps_its_size(small_chunks: int, distance: float, second: int) -> None:
    """Two tokens far apart, in one sub-chunk, in one chunk, in two: down to 1e-10 nats, where float32 has lost it.

    A sub-chunk's sum is float32, so that beside the highest token a chance below 6e-8 adds nothing to it: of
    p (1 + distance) at most one p is lost.
    """
    table = torch.full((600, 1), -1.0)
    table[0], table[second] = 1.0, 1.0 - distance / 20
    found = Vocabulary(table, CAP, 1.0, partial(statistics, cap=1e6)).read_out(
        torch.full((1, 1), 20.0), 1.0, torch.zeros(1), soft=False
    )
    p = torch.softmax(table[:, 0].double() * 20, -1)
    expected = float(-torch.special.xlogy(p, p).sum())
    assert found.entropy.item() == pytest.approx(expected, rel=2e-3 if distance <= 12 or second > 127 else 0.06)


@pytest.mark.parametrize(("first", "second"), [(3, 40), (3, 250), (3, 599), (300, 301)])
def test_of_equal_logits_the_first_is_the_argmax(small_chunks: int, first: int, second: int) -> None:
    c = case(600, rows=5)
    c.table[[first, second]] = torch.full((1, 16), 4.0)
    c.hidden.copy_(c.hidden.abs())
    assert c.read_out(0.4).argmax_ids.tolist() == [first] * 5


@pytest.mark.parametrize("size", [97, 300, 700])
def test_bfloat16_is_close(small_chunks: int, size: int) -> None:
    """Statistics stay float32; samples within a sub-chunk and soft embeddings have bfloat16's three digits."""
    c = case(size, dtype=torch.bfloat16)
    found, expected = c.read_out(0.6), plain(c, 0.6)
    assert torch.equal(found.argmax_ids, expected.argmax_ids)
    torch.testing.assert_close(found.entropy.double(), expected.entropy, atol=1e-5, rtol=0)
    assert_samples(found.sampled_ids, expected, c.draws, 2**-7)
    assert_decisions(found, expected)
    assert found.soft_embeddings is not None
    assert found.soft_embeddings.dtype == torch.bfloat16
    torch.testing.assert_close(found.soft_embeddings.double(), expected.soft_embeddings, atol=0.03, rtol=0)


def test_soft_embeddings_only_where_wanted(small_chunks: int) -> None:
    c = case(300)
    with_soft, without = c.read_out(0.4), c.read_out(0.4, soft=False)
    assert without.soft_embeddings is None
    assert torch.equal(with_soft.sampled_ids, without.sampled_ids)
    assert torch.equal(with_soft.entropy, without.entropy)


def test_one_row_is_as_that_row_among_others(small_chunks: int) -> None:
    c = case(600)
    whole = c.read_out(0.4)
    for row in range(0, 40, 7):
        one = c.vocabulary.read_out(c.hidden[row : row + 1], 0.4, c.draws[row : row + 1], True)
        assert one.sampled_ids[0] == whole.sampled_ids[row]
        assert one.entropy[0] == pytest.approx(whole.entropy[row].item(), abs=1e-6)


# -- samples --------------------------------------------------------------------------


@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_follow_the_softmax(small_chunks: int, dtype: torch.dtype, some: bool) -> None:
    """Chi-square of 20,000 draws over several chunks, of the vocabulary or of an allowed set."""
    c, count = case(700, seed=1, rows=5, dtype=dtype), 20_000
    allowed = torch.arange(0, 700, 2)
    hidden = c.hidden[2:3].expand(count, -1)
    draws = stateless.uniforms(11, 0, 1, stateless.SAMPLE, count)
    choices = [TokenChoice(torch.arange(count), allowed=allowed)] if some else None
    found = c.vocabulary.read_out(hidden, 0.6, draws, False, choices).sampled_ids.bincount(minlength=700)
    mask = torch.zeros(5, 700, dtype=torch.bool)
    mask[:, allowed if some else slice(None)] = True
    expected = plain(c, 0.6, mask).probabilities[2] * count
    likely = expected >= 5
    observed = torch.cat([found[likely].double(), found[~likely].sum()[None].double()])
    hoped = torch.cat([expected[likely], expected[~likely].sum()[None]])
    freedom = int(likely.sum())
    assert freedom > 100
    assert found[~mask[0]].sum() == 0
    # the 99.9 % point of chi-square, to the second order in its width
    assert ((observed - hoped) ** 2 / hoped).sum() < freedom + 3.09 * (2 * freedom) ** 0.5 + 5.7


@pytest.mark.parametrize("draw", [0.0, LAST_DRAW])
@pytest.mark.parametrize("excluded", [(), (0, 599), (0, 128, 256, 384, 512, 599)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_at_both_ends(small_chunks: int, dtype: torch.dtype, excluded: tuple[int, ...], draw: float) -> None:
    """The first and the last token with any weight, never past them and never one that is ruled out."""
    c = case(600, dtype=dtype)
    c.draws.fill_(draw)
    open_to = torch.ones(40, 600, dtype=torch.bool)
    open_to[:, list(excluded)] = False
    found = c.read_out(0.4, [TokenChoice(torch.arange(40), excluded=excluded)])
    expected = plain(c, 0.4, open_to)
    assert open_to.gather(-1, found.sampled_ids[:, None]).all()
    assert_samples(found.sampled_ids, expected, c.draws, EDGE if dtype == torch.float32 else 2**-7)
    weight = expected.tempered.gather(-1, found.sampled_ids[:, None])[:, 0] - expected.tempered.max(-1)[0]
    assert (weight > -104).all()  # less than that a float32 does not hold


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_draw_on_a_boundary_takes_the_token_above_it(small_chunks: int, dtype: torch.dtype) -> None:
    """512 equal tokens, exact chances: the first token whose cumulative probability exceeds the draw."""
    v = Vocabulary(torch.ones(512, 1, dtype=dtype), CAP, 1.0, partial(statistics, cap=CAP))
    found = v.read_out(torch.ones(512, 1, dtype=dtype), 1.0, torch.arange(512) / 512, False)
    assert found.sampled_ids.tolist() == list(range(512))


@pytest.mark.parametrize("likeliest", [130, 500, 599])
@pytest.mark.parametrize("draw", [0.0, LAST_DRAW])
def test_sub_chunks_without_any_weight_are_passed_over(small_chunks: int, likeliest: int, draw: float) -> None:
    table = torch.full((600, 1), -10.0)
    table[likeliest] = 10.0
    v = Vocabulary(table, CAP, 1.0, partial(statistics, cap=1e6))
    found = v.read_out(torch.full((1, 1), 16.0), 1.0, torch.tensor([draw]), False)
    assert found.sampled_ids.tolist() == [likeliest]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_ruled_out_token_is_not_drawn_where_weights_underflow(small_chunks: int, dtype: torch.dtype) -> None:
    """The first sub-chunk's tokens have chances around 1e-43: a float32 can hold them, a bfloat16 cannot."""
    table = torch.full((600, 1), -3.125, dtype=dtype)
    table[500] = 3.125
    v = Vocabulary(table, CAP, 1.0, partial(statistics, cap=1e6))
    choices = [TokenChoice(torch.arange(2), excluded=(0,))]
    found = v.read_out(torch.full((2, 1), 16.0, dtype=dtype), 1.0, torch.zeros(2), False, choices)
    assert 0 not in found.sampled_ids.tolist()


# -- choices --------------------------------------------------------------------------


def mixture(rows: int, size: int, seed: int = 0) -> tuple[list[TokenChoice], Tensor]:
    """Rows dealt to six kinds of choice, and the mask that says the same."""
    g = torch.Generator().manual_seed(seed)
    dealt = torch.randperm(rows, generator=g).tensor_split(6)
    sets = [torch.randperm(size, generator=g)[:n].sort()[0] for n in (1, size // 3, size - 2)]
    fixed = torch.randint(size, (len(dealt[0]),), generator=g)
    ruled_out = (1, size - 1, *sets[1][:2].tolist())
    choices = [
        TokenChoice(dealt[0], fixed=fixed),
        *(TokenChoice(dealt[1 + i], allowed=ids) for i, ids in enumerate(sets)),
        TokenChoice(dealt[4], excluded=ruled_out),
        TokenChoice(dealt[5], allowed=sets[1], excluded=ruled_out),
    ]
    mask = torch.zeros(rows, size, dtype=torch.bool)
    for choice in choices:
        for i, row in enumerate(choice.rows.tolist()):
            mask[row, slice(None) if choice.allowed is None else choice.allowed] = True
            mask[row, list(choice.excluded)] = False
            if choice.fixed is not None:
                mask[row] = False
                mask[row, choice.fixed[i]] = True
    return choices, mask


@pytest.mark.parametrize("size", [97, 256, 300, 900])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_choices_equal_masked_logits(small_chunks: int, size: int, temperature: float) -> None:
    """Fixed rows, allowed sets, excluded tokens and both together, all in one canvas."""
    c = case(size, seed=5)
    choices, mask = mixture(40, size)
    found = c.read_out(temperature, choices)
    assert_equal(found, plain(c, temperature, mask), c.draws)
    for ids in (found.argmax_ids, found.sampled_ids):
        assert mask.gather(-1, ids[:, None]).all()


def test_a_fixed_row_is_certain(small_chunks: int) -> None:
    c = case(300)
    found = c.read_out(2.0, [TokenChoice(torch.arange(40), fixed=torch.arange(40) + 200)])
    assert found.argmax_ids.tolist() == found.sampled_ids.tolist() == list(range(200, 240))
    assert (found.entropy == 0).all()
    assert found.soft_embeddings is not None
    assert torch.equal(found.soft_embeddings, c.table[200:240] * 4.0)


@pytest.mark.parametrize("likeliest", [0, 127, 300, 599])
def test_the_likeliest_token_ruled_out_is_never_chosen(small_chunks: int, likeliest: int) -> None:
    """However certain the model is of it, and where its chunk or sub-chunk holds nearly all of the weight."""
    c = case(600)
    c.table[likeliest] = 4.0
    c.hidden.copy_(c.hidden.abs() + 1)
    assert (c.read_out(0.4).argmax_ids == likeliest).all()
    found = c.read_out(0.4, [TokenChoice(torch.arange(40), excluded=(likeliest,))])
    assert (found.argmax_ids != likeliest).all()
    assert (found.sampled_ids != likeliest).all()


def test_a_whole_chunk_ruled_out(small_chunks: int) -> None:
    """The first one, before anything has been seen, and the last one."""
    c = case(600)
    for ruled_out in (range(256), range(512, 600)):
        mask = torch.ones(40, 600, dtype=torch.bool)
        mask[:, list(ruled_out)] = False
        found = c.read_out(0.8, [TokenChoice(torch.arange(40), excluded=tuple(ruled_out))])
        assert_equal(found, plain(c, 0.8, mask), c.draws)


def test_rows_do_not_feel_the_choices_of_others(small_chunks: int) -> None:
    c = case(600, seed=2)
    choices, _ = mixture(40, 600)
    free = c.read_out(0.4)
    for choice in choices:
        rest = torch.tensor(sorted(set(range(40)) - set(choice.rows.tolist())))
        found = c.read_out(0.4, [TokenChoice(rest), choice])
        assert torch.equal(found.argmax_ids[rest], free.argmax_ids[rest])
        assert torch.equal(found.sampled_ids[rest], free.sampled_ids[rest])
        torch.testing.assert_close(found.entropy[rest], free.entropy[rest], atol=1e-6, rtol=0)
        assert found.soft_embeddings is not None
        assert free.soft_embeddings is not None
        torch.testing.assert_close(found.soft_embeddings[rest], free.soft_embeddings[rest], atol=1e-6, rtol=0)
    mixed = c.read_out(0.4, choices)
    for choice in choices:
        rest = torch.tensor(sorted(set(range(40)) - set(choice.rows.tolist())))
        alone = c.read_out(0.4, [TokenChoice(rest), choice])
        assert torch.equal(alone.sampled_ids[choice.rows], mixed.sampled_ids[choice.rows])
        torch.testing.assert_close(alone.entropy[choice.rows], mixed.entropy[choice.rows], atol=1e-6, rtol=0)


# -- compiled -------------------------------------------------------------------------


def test_compiled_statistics_are_those_of_eager_ones(demo_bundle: Path, small_chunks: int) -> None:
    """What the build compiled, over several chunks and with ruled-out tokens; not where logits saturate into ties."""
    bundle = Bundle.open(demo_bundle)
    if not (bundle.directory / PIECES / "statistics.pt2").is_file():
        pytest.skip("built without a C++ compiler")
    assert bundle.spec.arch.final_logit_softcapping == CAP
    c = case(1000, seed=7)
    c.hidden[4::5] /= 4
    compiled = Vocabulary(c.table, CAP, 4.0, load_pieces(bundle.spec.arch, bundle.directory / PIECES).statistics)
    choices, mask = mixture(40, 1000)
    for dealt in (None, choices):
        found, eager = compiled.read_out(c.hidden, 0.4, c.draws, True, dealt), c.read_out(0.4, dealt)
        assert torch.equal(found.argmax_ids, eager.argmax_ids)
        assert (found.sampled_ids != eager.sampled_ids)[2:].sum() <= 1
        torch.testing.assert_close(found.entropy, eager.entropy, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.soft_embeddings, eager.soft_embeddings, atol=1e-5, rtol=0)
    assert mask.gather(-1, found.sampled_ids[:, None]).all()


# -- memory ---------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Remembers the most elements that any operation's result had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("kind", ["free", "excluded", "allowed"])
def test_nothing_of_vocabulary_width_is_made(small_chunks: int, kind: str) -> None:
    """At most a chunk's logits or a chunk of the table at a time."""
    c = case(5000)
    rows = torch.arange(40)
    choices = {"free": None, "excluded": [TokenChoice(rows, excluded=(1, 4000))]}
    choices["allowed"] = [TokenChoice(rows, allowed=torch.arange(0, 5000, 2))]
    with Largest() as largest:
        c.read_out(0.4, choices[kind])
    assert 0 < largest.elements <= max(40, c.hidden.shape[1]) * small_chunks
    with Largest() as whole:
        c.vocabulary.logits(c.hidden)
    assert whole.elements == 40 * 5000  # the count sees what it is to forbid
