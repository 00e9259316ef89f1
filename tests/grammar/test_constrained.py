"""A canvas under a grammar: every figure equals that of enumerating all texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tests.grammar.brute import Enumerated, everything, random_automaton
from trtllm_build.contract import Constraint
from trtllm_build.grammar import transitions
from trtllm_build.grammar.transitions import Transitions
from trtllm_build.network.pieces import statistics
from trtllm_build.network.vocabulary import Vocabulary
from trtllm_build.sampling import Sampling

VOCAB, ROWS, HIDDEN, CAP = 6, 4, 8, 30.0


def vocabulary(random, size=VOCAB, scale=3.0):
    table = torch.from_numpy(random.normal(0, scale, (size, HIDDEN))).float()
    return Vocabulary(table, CAP, 2.0, lambda *a: statistics(*a, cap=CAP)), table


def constraint(automaton, random, rows=ROWS):
    found = Transitions.of(automaton)
    state = automaton.start
    least = int(automaton.distance[state])
    return Constraint(found, state, rows, int(random.integers(max(0, least - rows), least + 3)))


@pytest.mark.parametrize("bulk", [1, 2, 1024], ids=["every class in bulk", "some classes in bulk", "none in bulk"])
@pytest.mark.parametrize("seed", range(8))
def test_equals_enumeration(monkeypatch, seed, bulk):
    monkeypatch.setattr(transitions, "BULK", bulk)
    random = np.random.default_rng(seed)
    vocab, table = vocabulary(random)
    automaton = random_automaton(random, VOCAB, 4)
    bound = constraint(automaton, random)
    hidden = torch.from_numpy(random.normal(0, 1, (ROWS, HIDDEN))).float()
    temperature = 0.6
    tempered = vocab.logits(hidden).double().numpy() / temperature
    true = Enumerated(automaton, tempered, bound.state, bound.remaining)
    if not len(true.texts):
        with pytest.raises(ValueError, match="no text of 4 tokens"):
            vocab.read_out(hidden, temperature, torch.rand(ROWS), True, constraint=bound)
        return
    found = vocab.read_out(hidden, temperature, torch.rand(ROWS), True, constraint=bound)
    assert found.log_z == pytest.approx(true.log_z, abs=1e-5)
    assert found.argmax_ids.tolist() == true.texts[true.probabilities.argmax()].tolist()
    np.testing.assert_allclose(found.entropy.numpy(), true.entropy, atol=1e-5)
    soft = true.marginals @ table.double().numpy() * 2.0
    np.testing.assert_allclose(found.soft_embeddings.numpy(), soft, atol=1e-4)


@pytest.mark.parametrize("bulk", [1, 1024])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.7)])
def test_samples_follow_the_joint_distribution(monkeypatch, bulk, sampling):
    monkeypatch.setattr(transitions, "BULK", bulk)
    random = np.random.default_rng(3)
    vocab, _ = vocabulary(random, scale=0.3)
    automaton = random_automaton(random, VOCAB, 4)
    bound = Constraint(Transitions.of(automaton), automaton.start, ROWS, 5)
    hidden = torch.from_numpy(random.normal(0, 1, (ROWS, HIDDEN))).float()
    true = Enumerated(automaton, vocab.logits(hidden).double().numpy() / (0.6 * sampling.temperature), 0, 5)
    index = {tuple(t): i for i, t in enumerate(true.texts.tolist())}
    counts, draws = np.zeros(len(index)), 1000
    uniforms = torch.from_numpy(random.random((draws, ROWS))).float()
    for u in uniforms:
        found = vocab.read_out(hidden, 0.6, u, False, sampling=sampling, constraint=bound)
        counts[index[tuple(found.sampled_ids.tolist())]] += 1
    common = true.probabilities * draws >= 5
    seen = [*counts[common], counts[~common].sum()]
    expected = [*true.probabilities[common] * draws, true.probabilities[~common].sum() * draws]
    keep = np.array(expected) > 0
    assert chisquare(np.array(seen)[keep], np.array(expected)[keep]).pvalue > 0.001


@pytest.mark.parametrize("scale", [0.2, 5.0])
def test_a_grammar_that_accepts_everything_changes_nothing(scale):
    random = np.random.default_rng(0)
    vocab, _ = vocabulary(random, 5000, scale)
    hidden = torch.from_numpy(random.normal(0, 1, (9, HIDDEN))).float()
    draws = torch.from_numpy(random.random(9)).float()
    free = vocab.read_out(hidden, 0.5, draws, True)
    bound = vocab.read_out(hidden, 0.5, draws, True, constraint=Constraint(Transitions.of(everything(5000)), 0, 9, 0))
    assert bound.argmax_ids.tolist() == free.argmax_ids.tolist()
    assert bound.sampled_ids.tolist() == free.sampled_ids.tolist()
    np.testing.assert_allclose(bound.entropy.numpy(), free.entropy.numpy(), atol=1e-5)
    np.testing.assert_allclose(bound.soft_embeddings.numpy(), free.soft_embeddings.numpy(), atol=1e-4)
    assert bound.log_z == pytest.approx(0, abs=1e-5)


def test_positions_behind_the_answer_choose_by_themselves():
    random = np.random.default_rng(1)
    vocab, _ = vocabulary(random)
    automaton = random_automaton(random, VOCAB, 4)
    hidden = torch.from_numpy(random.normal(0, 1, (ROWS, HIDDEN))).float()
    draws = torch.rand(ROWS)
    found = vocab.read_out(hidden, 0.5, draws, True, constraint=Constraint(Transitions.of(automaton), 0, 3, 9))
    free = vocab.read_out(hidden, 0.5, draws, True)
    alone = vocab.read_out(hidden[:3], 0.5, draws[:3], True, constraint=Constraint(Transitions.of(automaton), 0, 3, 9))
    assert found.argmax_ids[3] == free.argmax_ids[3]
    assert found.argmax_ids[:3].tolist() == alone.argmax_ids.tolist()
    assert found.log_z == alone.log_z


def test_logits_of_75_nats_lose_nothing():
    random = np.random.default_rng(5)
    vocab, _ = vocabulary(random, scale=100.0)  # the soft-cap's ends: 60 nats apart, 150 at a temperature of 0.4
    automaton = random_automaton(random, VOCAB, 4)
    hidden = torch.from_numpy(random.normal(0, 1, (ROWS, HIDDEN))).float()
    bound = Constraint(Transitions.of(automaton), automaton.start, ROWS, 3)
    true = Enumerated(automaton, vocab.logits(hidden).double().numpy() / 0.4, 0, 3)
    found = vocab.read_out(hidden, 0.4, torch.rand(ROWS), True, constraint=bound)
    assert found.log_z == pytest.approx(true.log_z, rel=1e-5)
    assert tuple(found.argmax_ids.tolist()) in {tuple(t) for t in true.texts.tolist()}
    np.testing.assert_allclose(found.entropy.numpy(), true.entropy, atol=1e-5)
