"""The whole engine of a GPU, kernels and all, on this CPU: against plain torch, and against transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nemo_diffgemma.architecture import GLOBAL, SLIDING
from nemo_diffgemma.checkpoint import Checkpoint
from tests.support import random_checkpoint, small_architecture
from trtllm_build.backends.cuda.backend import Cuda
from trtllm_build.backends.cuda.device_weights import from_checkpoint
from trtllm_build.backends.cuda.ops import reference_ops, triton_ops
from trtllm_build.contract import CanvasStep, EncodeStep, ReadOut, TokenChoice
from trtllm_build.gates.reference import Reference
from trtllm_build.gates.verify import compare
from trtllm_build.limits import Limits
from trtllm_build.network.pieces import eager_pieces
from trtllm_build.network.vocabulary import Vocabulary
from trtllm_build.quantization.recipe import Recipe, named_recipe
from trtllm_build.sampling import Sampling

ARCH = small_architecture(
    num_hidden_layers=2,
    layer_types=(SLIDING, GLOBAL),
    vocab_size=150,
    canvas_length=8,
    sliding_window=9,
    max_position_embeddings=128,
)
LIMITS = Limits(context=96, slots=2, canvas=8, vocab_size=150, queue=4, cache_tokens=None)
PLAIN = {"fp32": named_recipe("fp32"), "bf16": named_recipe("bf16")}
# fp8 with everything else in float32: a difference is then not rounding of something else
FP8 = Recipe("fp8", "float32", "fp8", named_recipe("fp8").quantize, named_recipe("fp8").keep)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(random_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", ARCH))


def backends(checkpoint: Checkpoint, recipe: Recipe) -> tuple[Cuda, Cuda]:
    """By our kernels in the interpreter, and in plain torch."""
    weights = from_checkpoint(checkpoint, recipe, torch.device("cpu"))
    return Cuda(ARCH, weights, triton_ops(), LIMITS), Cuda(ARCH, weights, reference_ops(), LIMITS)


def ids(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, ARCH.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


def step(
    slot: int, seed: int, soft: torch.Tensor | None = None, choices: list[TokenChoice] | None = None
) -> CanvasStep:
    draws = torch.rand(8, generator=torch.Generator().manual_seed(seed))
    return CanvasStep(slot, ids(8, seed), soft, 0.7, draws, choices=choices)


def read_out(result: ReadOut | Exception) -> ReadOut:
    assert isinstance(result, ReadOut), result
    return result


@pytest.mark.parametrize(("recipe", "tolerance"), [(PLAIN["fp32"], 1e-4), (FP8, 1e-3)], ids=["fp32", "fp8"])
def test_kernels_denoise_as_plain_torch_does(checkpoint: Checkpoint, recipe: Recipe, tolerance: float) -> None:
    found, expected = backends(checkpoint, recipe)
    results = []
    for backend in (found, expected):
        for slot, length in ((0, 21), (1, 3)):
            backend.admit(slot, length + 16, 0)
            assert backend.encode([EncodeStep(slot, ids(length, slot), 0)]) == [None]
        first = [read_out(r) for r in backend.denoise([step(0, 5), step(1, 6)])]
        commit = [
            EncodeStep(slot, r.argmax_ids, length) for slot, length, r in zip((0, 1), (21, 3), first, strict=True)
        ]
        assert backend.encode(commit) == [None, None]
        assert first[0].soft_embeddings is not None
        (second,) = backend.denoise([step(0, 7, first[0].soft_embeddings)])
        results.append([*first, read_out(second)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a.argmax_ids, b.argmax_ids)
        assert a.soft_embeddings is not None
        assert b.soft_embeddings is not None
        assert torch.allclose(a.entropy, b.entropy, atol=10 * tolerance)
        assert torch.allclose(a.soft_embeddings, b.soft_embeddings, atol=10 * tolerance)


def test_the_kernels_are_transformers_model(checkpoint: Checkpoint) -> None:
    parity = compare(Reference(checkpoint), backends(checkpoint, PLAIN["fp32"])[0], ARCH)
    assert parity.max_abs < 1e-4


def test_bfloat16_kernels_are_near_transformers_model(checkpoint: Checkpoint) -> None:
    parity = compare(Reference(checkpoint), backends(checkpoint, PLAIN["bf16"])[0], ARCH)
    assert parity.mean_relative < 0.1


def test_a_canvas_is_the_same_to_the_last_bit_beside_another(checkpoint: Checkpoint) -> None:
    backend, _ = backends(checkpoint, FP8)
    for slot, length in ((0, 12), (1, 30)):
        backend.admit(slot, length + 8, 0)
        backend.encode([EncodeStep(slot, ids(length, slot), 0)])
    (alone,) = backend.denoise([step(0, 3)])
    beside, _ = backend.denoise([step(0, 3), step(1, 4)])
    for name, value in vars(read_out(alone)).items():
        other = getattr(read_out(beside), name)
        assert value is other if value is None else torch.equal(value, other), name


def test_pinned_allowed_and_excluded_positions(checkpoint: Checkpoint) -> None:
    """As the CPU engine's vocabulary has it: a pinned token is certain, a set is all there is to choose from."""
    pinned = TokenChoice(torch.tensor([1]), fixed=torch.tensor([77]))
    few = TokenChoice(torch.tensor([0, 2]), allowed=torch.tensor([4, 90, 91]))
    free = read_out(backends(checkpoint, PLAIN["fp32"])[1].denoise([step(0, 9)])[0])
    without = TokenChoice(torch.tensor([3, 4, 5, 6, 7]), excluded=tuple(sorted(set(free.argmax_ids.tolist()))))
    results = []
    for backend in backends(checkpoint, PLAIN["fp32"]):
        backend.admit(0, 16, 0)
        results.append(read_out(backend.denoise([step(0, 9, choices=[pinned, few, without])])[0]))
    found, expected = results
    assert torch.equal(found.argmax_ids, expected.argmax_ids)
    assert torch.equal(found.sampled_ids, expected.sampled_ids)
    assert found.argmax_ids[1] == 77
    assert found.entropy[1] == 0
    assert {*found.argmax_ids[[0, 2]].tolist(), *found.sampled_ids[[0, 2]].tolist()} <= {4, 90, 91}
    assert not set(found.argmax_ids[3:].tolist()) & set(free.argmax_ids.tolist())
    assert found.soft_embeddings is not None
    assert expected.soft_embeddings is not None
    assert torch.allclose(found.soft_embeddings, expected.soft_embeddings, atol=1e-4)
    table = from_checkpoint(checkpoint, PLAIN["fp32"], torch.device("cpu")).embedding
    assert torch.allclose(found.soft_embeddings[1], table[77] * ARCH.embed_scale, atol=1e-5)


def test_a_slot_that_is_not_where_the_caller_thinks_is_refused(checkpoint: Checkpoint) -> None:
    _, backend = backends(checkpoint, PLAIN["fp32"])
    backend.admit(0, 40, 0)
    (error,) = backend.encode([EncodeStep(0, ids(5, 0), 3)])
    assert str(error) == "slot 0 holds 0 tokens, cannot go on at 3"
    with pytest.raises(ValueError, match="slot 0 holds 0 tokens, cannot keep 4"):
        backend.admit(0, 40, 4)


@pytest.mark.parametrize(
    ("by_kernels", "sampling"),
    [(False, Sampling(0)), (False, Sampling(1.6)), (False, Sampling(1, 0.5)), (True, Sampling(1.6, 0.8))],
    ids=str,
)
def test_temperature_and_top_p_as_the_cpu_engine_has_them(
    checkpoint: Checkpoint, by_kernels: bool, sampling: Sampling
) -> None:
    """And nothing but the drawn tokens depends on them, nor do those on what runs beside them."""
    pinned = TokenChoice(torch.tensor([1]), fixed=torch.tensor([77]))
    few = TokenChoice(torch.tensor([0, 2]), allowed=torch.arange(4, 150, 3))
    without = TokenChoice(torch.tensor([3, 4, 5, 6, 7]), excluded=(3, 5, 140))
    weights = from_checkpoint(checkpoint, PLAIN["fp32"], torch.device("cpu"))
    vocabulary = Vocabulary(
        weights.embedding, ARCH.final_logit_softcapping, ARCH.embed_scale, eager_pieces(ARCH).statistics
    )
    backend = backends(checkpoint, PLAIN["fp32"])[0 if by_kernels else 1]
    for slot in (0, 1):
        backend.admit(slot, 16, 0)
    for choices in (None, [pinned, few, without]):
        plain = step(0, 9, choices=choices)
        usual = read_out(backend.denoise([plain])[0])
        hidden = backend._denoise[0].buffers.hidden[:8].clone()
        asked = replace(plain, sampling=sampling)
        found = read_out(backend.denoise([asked])[0])
        for name in ("argmax_ids", "entropy", "soft_embeddings"):
            assert torch.equal(getattr(found, name), getattr(usual, name)), name
        expected = vocabulary.read_out(hidden, 0.7, plain.draws, False, choices, sampling)
        assert torch.equal(found.sampled_ids, expected.sampled_ids)
        assert not torch.equal(found.sampled_ids, usual.sampled_ids)
        if by_kernels:  # plain torch rounds by the number of rows
            beside = [read_out(r) for r in backend.denoise([step(1, 4), asked])]
            assert torch.equal(beside[1].sampled_ids, found.sampled_ids)
