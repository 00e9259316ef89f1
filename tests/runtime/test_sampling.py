"""``temperature`` and ``top_p`` against a plain reading of all logits at once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from nemo_diffgemma.errors import FieldError
from trtllm_build.contract import ReadOut, TokenChoice
from trtllm_build.network import vocabulary
from trtllm_build.network.pieces import statistics
from trtllm_build.network.vocabulary import Vocabulary
from trtllm_build.runtime.request import Request
from trtllm_build.sampling import LEAST_TEMPERATURE, SamplerConfig, Sampling

CAP = 30.0
STEP = 0.6  # temperature of the step
ROWS, WIDTH = 30, 16
SIZES = (100, 300, 1111)  # a part of a chunk, two chunks, several


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK", 256)


def grid(*shape: int, seed: int = 0) -> Tensor:
    """Numbers whose products are exact in float32, with many ties."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 4).round() / 4


def canvas(size: int, rows: int = ROWS, seed: int = 0) -> tuple[Vocabulary, Tensor, Tensor, Tensor]:
    """Vocabulary, table, hidden states and draws."""
    table = grid(size, WIDTH, seed=seed) / 4
    hidden = grid(rows, WIDTH, seed=seed + 1) * torch.tensor([0.0, 0.25, 1.0, 4.0, 8.0]).repeat(rows // 5)[:, None]
    draws = torch.rand(rows, generator=torch.Generator().manual_seed(seed + 2))
    return Vocabulary(table, CAP, WIDTH**0.5, partial(statistics, cap=CAP)), table, hidden, draws


def kept(table: Tensor, hidden: Tensor, sampling: Sampling, open_to: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Probabilities at the temperature that is sampled at ``[rows, vocab]`` float64, and which are in the nucleus."""
    products = hidden @ table.T
    logits = torch.tanh(products / CAP) * CAP * (1.0 / (STEP * sampling.temperature))
    if open_to is not None:
        products, logits = (x.masked_fill(~open_to, float("-inf")) for x in (products, logits))
    p = torch.softmax(logits.double(), -1)
    # of equal ones the lower id is first: a stable sort
    order = torch.sort(products, dim=-1, descending=True, stable=True).indices
    before = p.gather(-1, order).cumsum(-1) - p.gather(-1, order)
    # a sum that is the bound but for rounding has reached it
    inside = torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, before < sampling.top_p - 1e-9)
    return p, inside & (p > 0)


def expected_ids(p: Tensor, inside: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that draws a millionth lower and higher give."""
    weights = torch.where(inside, p, 0.0)
    cumulative = weights.cumsum(-1)
    found = []
    for shift in (-1e-6, 1e-6):
        target = ((draws.double() + shift).clamp(0, 1 - 1e-9) * cumulative[:, -1])[:, None]
        found.append(torch.searchsorted(cumulative, target, right=True)[:, 0])
    return found[0], found[1]


SETTINGS = [Sampling(t, p) for t in (0.3, 1, 1.7, 2) for p in (0.05, 0.5, 0.9, 0.999, 1)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_is_what_all_logits_at_once_give(size: int, sampling: Sampling) -> None:
    vocab, table, hidden, draws = canvas(size)
    usual = vocab.read_out(hidden, STEP, draws, True)
    found = vocab.read_out(hidden, STEP, draws, True, None, sampling)
    assert_only_samples_differ(found, usual)
    p, inside = kept(table, hidden, sampling)
    lower, upper = expected_ids(p, inside, draws)
    assert ((found.sampled_ids == lower) | (found.sampled_ids == upper)).all()
    assert (lower == upper).float().mean() > 0.9
    assert inside.gather(1, found.sampled_ids[:, None]).all()


def assert_only_samples_differ(found: ReadOut, usual: ReadOut) -> None:
    """To the last bit."""
    assert torch.equal(found.argmax_ids, usual.argmax_ids)
    assert torch.equal(found.entropy, usual.entropy)
    assert found.soft_embeddings is not None
    assert usual.soft_embeddings is not None
    assert torch.equal(found.soft_embeddings, usual.soft_embeddings)


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(1, 0), Sampling(0, 0.5), Sampling(LEAST_TEMPERATURE)])
def test_the_least_is_the_argmax(sampling: Sampling) -> None:
    vocab, _, hidden, draws = canvas(300)
    found = vocab.read_out(hidden, STEP, draws, True, None, sampling)
    assert torch.equal(found.sampled_ids, found.argmax_ids)
    assert not torch.equal(vocab.read_out(hidden, STEP, draws, True).sampled_ids, found.argmax_ids)


def test_one_of_each_costs_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, _, hidden, draws = canvas(300)
    passes: list[float] = []
    real = Vocabulary._pass

    def counted(self: Vocabulary, hidden: Tensor, temperature: float, *rest: object) -> ReadOut:
        passes.append(temperature)
        return real(self, hidden, temperature, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Vocabulary, "_pass", counted)
    for sampling, expected in ((Sampling(), 1), (Sampling(0), 1), (Sampling(0.5), 2)):
        passes.clear()
        vocab.read_out(hidden, STEP, draws, True, None, sampling)
        assert len(passes) == expected


def test_rows_do_not_depend_on_their_company() -> None:
    vocab, _, hidden, draws = canvas(1111)
    sampling = Sampling(1.5, 0.8)
    together = vocab.read_out(hidden, STEP, draws, False, None, sampling).sampled_ids
    alone = [vocab.read_out(hidden[i : i + 1], STEP, draws[i : i + 1], False, None, sampling) for i in range(ROWS)]
    assert torch.equal(together, torch.cat([a.sampled_ids for a in alone]))


@pytest.mark.parametrize("sampling", [Sampling(1.5), Sampling(1, 0.7), Sampling(0.5, 0.9), Sampling(0)], ids=str)
def test_within_what_positions_may_choose(sampling: Sampling) -> None:
    vocab, table, hidden, draws = canvas(700)
    allowed = torch.arange(3, 700, 7)
    excluded = (3, 10, 17, 24)
    choices = [
        TokenChoice(torch.arange(0, 10), fixed=torch.arange(10) + 5),
        TokenChoice(torch.arange(10, 20), allowed=allowed, excluded=excluded),
        TokenChoice(torch.arange(20, 30), excluded=(0, 1, 600)),
    ]
    open_to = torch.ones(ROWS, 700, dtype=torch.bool)
    open_to[10:20] = False
    open_to[10:20, allowed] = True
    open_to[10:20, list(excluded)] = False
    open_to[20:, [0, 1, 600]] = False
    found = vocab.read_out(hidden, STEP, draws, True, choices, sampling)
    assert_only_samples_differ(found, vocab.read_out(hidden, STEP, draws, True, choices))
    assert found.sampled_ids[:10].tolist() == list(range(5, 15))
    if sampling.temperature == 0:
        assert torch.equal(found.sampled_ids, found.argmax_ids)
        return
    p, inside = kept(table, hidden, sampling, open_to)
    lower, upper = expected_ids(p, inside, draws)
    assert ((found.sampled_ids == lower) | (found.sampled_ids == upper))[10:].all()


@pytest.mark.parametrize("sampling", [Sampling(1.5), Sampling(1, 0.6), Sampling(0.7, 0.9)], ids=str)
def test_many_draws_have_the_distribution(sampling: Sampling) -> None:
    """Chi-square at a fixed seed, its mean and six deviations."""
    vocab, table, hidden, _ = canvas(40, rows=5)
    count = 20_000
    draws = torch.rand(count, generator=torch.Generator().manual_seed(7))
    for row in hidden[1:3]:
        p, inside = kept(table, row[None], sampling)
        q = torch.where(inside, p, 0.0)[0]
        q /= q.sum()
        ids = vocab.read_out(row.expand(count, -1), STEP, draws, False, None, sampling).sampled_ids
        seen = ids.bincount(minlength=40).double()
        assert (seen[q == 0] == 0).all()
        often = q * count > 5
        chi_square = ((seen - q * count) ** 2 / (q * count))[often].sum()
        degrees = int(often.sum()) - 1
        assert chi_square < degrees + 6 * (2 * degrees) ** 0.5


def test_ties_go_to_lower_ids() -> None:
    table = torch.ones(600, WIDTH) / 16
    vocab = Vocabulary(table, CAP, 1.0, partial(statistics, cap=CAP))
    draws = torch.linspace(0, 1 - 2**-24, 200)
    ids = vocab.read_out(torch.ones(200, WIDTH), STEP, draws, False, None, Sampling(1, 0.5)).sampled_ids
    assert int(ids.min()) == 0
    assert int(ids.max()) == 299


@pytest.mark.parametrize("name", ["temperature", "top_p"])
@pytest.mark.parametrize("value", [-0.1, 2.1, float("nan"), float("inf"), "1", True, None])
def test_refuses_by_name(name: str, value: object) -> None:
    with pytest.raises(FieldError, match=f"^{name}: "):
        Request((1,), 8, **{name: value})  # type: ignore[arg-type]
    assert replace(Request((1,), 8), temperature=0, top_p=0).sampling == Sampling(0, 0)


@pytest.mark.parametrize(
    "stated",
    [{"_cls_name": "ConfidenceSamplerConfig"}, {"entropy_bound": 0.1, "threshold": 0.9}, {"_cls_name": 0}, 0, []],
)
def test_another_sampler_is_not_replaced_by_ours(stated: object) -> None:
    with pytest.raises(FieldError, match="^sampler_config: .*EntropyBoundSamplerConfig"):
        SamplerConfig.from_generation_config({"sampler_config": stated})


@pytest.mark.parametrize("stated", [None, {}, {"_cls_name": None, "entropy_bound": None}])
def test_a_checkpoint_that_names_no_sampler_gets_the_released_one(stated: object) -> None:
    assert SamplerConfig.from_generation_config({"sampler_config": stated}) == SamplerConfig()
