"""Canvases that a grammar binds, on the engine of a GPU, here with its kernels in the interpreter or their references.

Its host inference is that of the CPU engine, which tests/grammar judges by enumeration; so is this, on its own logits.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nemo_diffgemma.architecture import GLOBAL, SLIDING
from nemo_diffgemma.checkpoint import Checkpoint
from tests.grammar.brute import Enumerated, everything, random_automaton
from tests.support import random_checkpoint, small_architecture
from trtllm_build.backends.cuda.backend import Cuda
from trtllm_build.backends.cuda.device_weights import from_checkpoint
from trtllm_build.backends.cuda.ops import reference_ops, triton_ops
from trtllm_build.contract import CanvasStep, Constraint, EncodeStep, ReadOut
from trtllm_build.grammar import transitions
from trtllm_build.grammar.transitions import Transitions
from trtllm_build.limits import Limits
from trtllm_build.quantization.recipe import named_recipe
from trtllm_build.sampling import Sampling

VOCAB, CANVAS, TEMPERATURE = 7, 5, 0.6
ARCH = small_architecture(
    num_hidden_layers=2,
    layer_types=(SLIDING, GLOBAL),
    vocab_size=VOCAB,
    canvas_length=CANVAS,
    sliding_window=9,
    max_position_embeddings=128,
)
LIMITS = Limits(context=48, slots=2, canvas=CANVAS, vocab_size=VOCAB, queue=4, cache_tokens=None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(random_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", ARCH))


@pytest.fixture(scope="module")
def backends(checkpoint: Checkpoint) -> dict[str, Cuda]:
    weights = from_checkpoint(checkpoint, named_recipe("fp32"), torch.device("cpu"))
    made = {
        "kernels": Cuda(ARCH, weights, triton_ops(), LIMITS),
        "references": Cuda(ARCH, weights, reference_ops(), LIMITS),
    }
    for backend in made.values():
        for slot in (0, 1):
            backend.admit(slot, 6 + CANVAS, 0)
            assert backend.encode([EncodeStep(slot, torch.tensor([1, 5, 2, 0, 3 + slot, 1]), 0)]) == [None]
    return made


def step(slot: int = 0, seed: int = 3, constraint: Constraint | None = None, sampling: Sampling | None = None):
    random = torch.Generator().manual_seed(seed)
    ids, draws = torch.randint(0, VOCAB, (CANVAS,), generator=random), torch.rand(CANVAS, generator=random)
    made = CanvasStep(slot, ids, None, TEMPERATURE, draws, constraint=constraint)
    return made if sampling is None else replace(made, sampling=sampling)


def run(backend: Cuda, *steps: CanvasStep) -> list[ReadOut]:
    found = backend.denoise(steps)
    assert all(isinstance(r, ReadOut) for r in found), found
    return found


@pytest.mark.parametrize(("ops", "bulk"), [("kernels", 2), ("references", 1), ("references", 2), ("references", 1024)])
def test_equals_enumeration(monkeypatch: pytest.MonkeyPatch, backends: dict[str, Cuda], ops: str, bulk: int) -> None:
    """With all, some and none of the classes of tokens read in bulk."""
    monkeypatch.setattr(transitions, "BULK", bulk)
    backend, rows = backends[ops], CANVAS - 1
    logits = backend.logits(torch.tensor([1, 5, 2, 0, 3, 1]), step().canvas_ids, None)
    (free,) = run(backend, step())
    table = backend.network.weights.embedding.double().numpy() * ARCH.embed_scale
    for seed in range(2):
        automaton = random_automaton(np.random.default_rng(seed), VOCAB, 4)
        bound = Constraint(Transitions.of(automaton), automaton.start, rows, 3)
        true = Enumerated(automaton, logits[:rows].double().numpy() / TEMPERATURE, automaton.start, 3)
        (found,) = run(backend, step(constraint=bound))
        assert found.log_z == pytest.approx(true.log_z, abs=1e-4)
        assert tuple(found.argmax_ids[:rows].tolist()) == tuple(true.texts[true.probabilities.argmax()].tolist())
        assert tuple(found.sampled_ids[:rows].tolist()) in {tuple(t) for t in true.texts.tolist()}
        np.testing.assert_allclose(found.entropy[:rows].numpy(), true.entropy, atol=1e-4)
        soft = found.soft_embeddings
        assert soft is not None
        np.testing.assert_allclose(soft[:rows].numpy(), true.marginals @ table, atol=1e-3)
        # those behind the answer's end choose by themselves
        assert torch.equal(found.argmax_ids[rows:], free.argmax_ids[rows:])
        assert torch.equal(found.entropy[rows:], free.entropy[rows:])


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0), Sampling(1.7)], ids=str)
def test_a_grammar_that_accepts_everything_changes_nothing(backends: dict[str, Cuda], sampling: Sampling) -> None:
    backend = backends["references"]
    bound = Constraint(Transitions.of(everything(VOCAB)), 0, CANVAS, 0)
    (free,) = run(backend, step(sampling=sampling))
    (found,) = run(backend, step(constraint=bound, sampling=sampling))
    assert torch.equal(found.argmax_ids, free.argmax_ids)
    assert torch.equal(found.sampled_ids, free.sampled_ids)
    assert torch.allclose(found.entropy, free.entropy, atol=1e-4)
    assert found.log_z == pytest.approx(0, abs=1e-5)


def test_alone_and_in_company_to_the_last_bit(backends: dict[str, Cuda]) -> None:
    backend = backends["kernels"]  # plain torch chooses its products by the number of rows
    automaton = random_automaton(np.random.default_rng(1), VOCAB, 4)
    bound = Constraint(Transitions.of(automaton), automaton.start, CANVAS - 1, 3)
    (alone,) = run(backend, step(constraint=bound))
    (neighbour,) = run(backend, step(1, 4))
    beside, other = run(backend, step(constraint=bound), step(1, 4))
    for a, b in ((alone, beside), (neighbour, other)):
        assert torch.equal(a.argmax_ids, b.argmax_ids)
        assert torch.equal(a.sampled_ids, b.sampled_ids)
        assert torch.equal(a.entropy, b.entropy)
        assert a.soft_embeddings is not None
        assert torch.equal(a.soft_embeddings, b.soft_embeddings)
        assert a.log_z == b.log_z
