"""Sampler, schedule and stopping against transformers' own, on the same logits and the same draws."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.diffusion_gemma import generation_diffusion_gemma as upstream

from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.diffusion import draws, sampler, schedule, stopping
from tests.support import random_checkpoint, small_architecture
from trtllm_build import load_engine
from trtllm_build.gates.reference import Reference
from trtllm_build.pipeline import build
from trtllm_build.plan import make_plan


def some_logits(seed: int, canvas: int = 16, vocab: int = 40) -> torch.Tensor:
    """Logits of very different certainty from position to position."""
    g = torch.Generator().manual_seed(seed)
    scale = 10 ** (torch.rand(3, canvas, 1, generator=g) * 3 - 1)
    return torch.randn(3, canvas, vocab, generator=g) * scale


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), bound=st.sampled_from([0.01, 0.1, 0.5, 3.0]))
def test_acceptance(seed: int, bound: float) -> None:
    logits = some_logits(seed)
    theirs = upstream.EntropyBoundSampler(upstream.EntropyBoundSamplerConfig(bound), 16, 40, 48)
    sampled, current = torch.full((3, 16), 1), torch.full((3, 16), 0)
    accepted = theirs.accept_canvas(current, sampled, logits, 1)
    ours = sampler.accept(sampler.entropy(logits), bound)
    assert torch.equal(ours, accepted.bool())
    assert ours.any(-1).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.integers(0, 3), confidence=st.sampled_from([0.005, 0.5, 2.0]))
def test_stopping_over_several_steps(seed: int, threshold: int, confidence: float) -> None:
    theirs = upstream.StableAndConfidentStoppingCriteria(threshold, confidence)
    steady: list[int] = [0, 0, 0]
    before: list[list[int]] = [[], [], []]
    for step in range(6):
        logits = some_logits(seed + step // 2)  # every canvas is seen twice
        argmax = logits.argmax(-1)
        expected = theirs(argmax, logits)
        ids = argmax.tolist()
        steady = [stopping.steady(*row) for row in zip(steady, before, ids, strict=True)]
        before = ids
        stable = torch.tensor(steady) >= threshold
        assert torch.equal(stable & stopping.confident(sampler.entropy(logits), confidence), expected)


def test_temperature_schedule() -> None:
    theirs = upstream.LinearTemperatureScheduleLogitsProcessor(0.4, 0.8, 48)
    ones = torch.ones(1)
    for remaining in range(48, 0, -1):
        expected = 1 / theirs(None, ones, remaining).item()
        assert schedule.temperature(remaining, 48, 0.4, 0.8) == pytest.approx(expected, rel=1e-6)


def test_samples_follow_the_softmax() -> None:
    """Chi-square of 20,000 draws over 12 tokens; the 99.9 % point at 11 degrees of freedom is 31.3."""
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 1.5
    count = 20_000
    u = draws.uniforms(5, 0, 1, draws.SAMPLE, count)
    found = sampler.sample(logits.expand(count, 12), u).bincount(minlength=12).double()
    expected = torch.softmax(logits.double(), -1) * count
    assert ((found - expected) ** 2 / expected).sum() < 31.3


class OurDraws:
    """Feeds transformers' generate the stateless draws of one request, in the order it asks for randomness."""

    def __init__(self, seed: int, canvas_length: int, vocab_size: int):
        self.seed, self.length, self.vocab = seed, canvas_length, vocab_size
        self.canvas, self.step = -1, 0

    def noise(self, step: int) -> torch.Tensor:
        u = draws.uniforms(self.seed, self.canvas, step, draws.NOISE, self.length)
        return draws.uniform_to_token(u, self.vocab)[None]

    def initialize_canvas(self, *_: object, **__: object) -> torch.Tensor:
        return self.noise(self.step)

    def multinomial(self, probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        self.step += 1
        u = draws.uniforms(self.seed, self.canvas, self.step, draws.SAMPLE, self.length)
        return sampler.sample(probabilities.log(), u)[:, None]

    def next_canvas(self) -> None:
        self.canvas, self.step = self.canvas + 1, 0


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Path]:
    arch = small_architecture(canvas_length=8, vocab_size=40, sliding_window=6)
    return random_checkpoint(tmp_path / "checkpoint", arch)


@pytest.mark.parametrize("seed", range(6))
def test_generate_equals_transformers_with_the_same_draws(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The whole loop over three canvases: same steps, same committed tokens.

    At the released temperatures: at lower ones random weights amplify the last bit of a logit within a few steps.
    """
    build(
        make_plan(["gpu=cpu", "compile=false", f"checkpoint={checkpoint}", f"out={tmp_path / 'engine'}"]),
        lambda line: None,
    )
    engine = load_engine(tmp_path / "engine")
    settings = {"max_denoising_steps": 6, "confidence_threshold": 3.0, "t_min": 0.4, "t_max": 0.8}
    prompt = list(range(3, 14))
    ours = engine.generate([prompt], max_tokens=24, seed=seed, ignore_eos=True, **settings)[0]
    engine.close()

    random = OurDraws(seed, 8, 40)
    model = Reference(Checkpoint(checkpoint)).model
    monkeypatch.setattr(upstream.EntropyBoundSampler, "initialize_canvas", random.initialize_canvas)
    monkeypatch.setattr(torch, "multinomial", random.multinomial)
    prepare = model._prepare_denoiser_inputs

    def prepare_next(**kwargs: object) -> object:
        random.next_canvas()
        return prepare(**kwargs)

    monkeypatch.setattr(model, "_prepare_denoiser_inputs", prepare_next)
    theirs = model.generate(torch.tensor([prompt]), max_new_tokens=24, **settings)
    assert list(ours.token_ids) == theirs.sequences[0, len(prompt) :].tolist()
    assert 24 / sum(ours.denoising_steps) == pytest.approx(theirs.tokens_per_forward.item())
