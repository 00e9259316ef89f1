"""The engine computes what transformers computes, at identical weights, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DiffusionGemmaForBlockDiffusion

from nemo_diffgemma.checkpoint import Checkpoint
from tests.support import random_architecture, random_checkpoint, small_architecture
from trtllm_build import load_engine
from trtllm_build.contract import EncodeStep
from trtllm_build.gates.reference import Reference
from trtllm_build.pipeline import build
from trtllm_build.plan import make_plan

LIMIT = 1e-4


def build_engine(checkpoint: Path, out: Path, *overrides: str) -> Path:
    build(
        make_plan(["gpu=cpu", "compile=false", f"checkpoint={checkpoint}", f"out={out}", *overrides]), lambda line: None
    )
    return out


@pytest.mark.parametrize("seed", range(12))
def test_logits_equal_transformers_on_random_architectures(seed: int, tmp_path: Path) -> None:
    """Both phases, two scalars per layer, prompts shorter and longer than the window, with and without conditioning."""
    arch = random_architecture(seed)
    checkpoint = random_checkpoint(tmp_path / "checkpoint", arch, seed)
    engine = load_engine(build_engine(checkpoint, tmp_path / "engine"))
    reference = Reference(Checkpoint(checkpoint))
    g = torch.Generator().manual_seed(seed)
    for length in (1, max(1, arch.sliding_window - 1), arch.sliding_window, arch.sliding_window * 3 + 2):
        prompt = torch.randint(arch.vocab_size, (length,), generator=g)
        canvas = torch.randint(arch.vocab_size, (arch.canvas_length,), generator=g)
        previous = None
        for _ in range(2):
            expected = reference.logits(prompt, canvas, previous)
            found = engine.logits(prompt.tolist(), canvas.tolist(), previous)
            assert found.dtype == torch.float32
            assert found.shape == (arch.canvas_length, arch.vocab_size)
            assert (found - expected).abs().max() <= LIMIT
            previous = expected / 0.6
    engine.close()


@pytest.mark.slow
def test_the_exported_checkpoint_in_transformers_and_in_the_engine(exported_checkpoint: Path, tmp_path: Path) -> None:
    """transformers loads what training wrote with nothing missing or unexpected, and the engine computes the same."""
    model, report = DiffusionGemmaForBlockDiffusion.from_pretrained(
        str(exported_checkpoint), dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    engine = load_engine(build_engine(exported_checkpoint, tmp_path / "engine"))
    assert engine.tokenizer is not None
    prompts = [
        engine.tokenizer.chat([{"role": "user", "content": text}]) for text in ("12 km in m", "Reverse: red bags." * 9)
    ]
    assert len(prompts[1]) > engine.spec.arch.sliding_window
    for prompt in prompts:
        canvas = torch.randint(engine.limits.vocab_size, (engine.limits.canvas,))
        previous = None
        for _ in range(2):
            with torch.inference_mode():
                expected = model(
                    input_ids=torch.tensor([prompt]),
                    decoder_input_ids=canvas[None],
                    self_conditioning_logits=None if previous is None else previous[None],
                ).logits[0]
            assert (engine.logits(prompt, canvas.tolist(), previous) - expected).abs().max() <= LIMIT
            previous = expected / 0.6
    engine.close()


def test_scalars_of_both_phases_matter(tmp_path: Path) -> None:
    """An engine that used one phase's scalars for both would be caught."""
    arch = small_architecture()
    checkpoint = random_checkpoint(tmp_path / "checkpoint", arch)
    reference = Reference(Checkpoint(checkpoint))
    prompt, canvas = torch.arange(12), torch.arange(arch.canvas_length)
    right = reference.logits(prompt, canvas, None)
    for layer in range(arch.num_hidden_layers):
        scalars = reference.model.model.encoder.language_model.layers[layer].layer_scalar
        scalars.copy_(reference.model.model.decoder.layers[layer].layer_scalar)
    assert (reference.logits(prompt, canvas, None) - right).abs().max() > 100 * LIMIT


def test_a_second_canvas_sees_the_committed_first(tmp_path: Path) -> None:
    """Encoding a finished canvas on top of the cache equals encoding prompt and canvas together."""
    arch = small_architecture(canvas_length=8, sliding_window=5)
    checkpoint = random_checkpoint(tmp_path / "checkpoint", arch)
    engine = load_engine(build_engine(checkpoint, tmp_path / "engine"))
    backend = engine._backend
    prompt, first, second = torch.arange(11), torch.arange(20, 28), torch.arange(40, 48)
    backend.admit(0, 27, 0)
    assert backend.encode([EncodeStep(0, prompt, 0)]) == [None]
    assert backend.encode([EncodeStep(0, first, 11)]) == [None]
    with torch.inference_mode():
        hidden = backend.network.denoise(second, None, backend._caches[0])
    together = Reference(Checkpoint(checkpoint)).logits(torch.cat([prompt, first]), second, None)
    found = torch.tanh(hidden @ backend.network.weights.embedding.T / 30) * 30
    assert (found - together).abs().max() <= LIMIT
    engine.close()


def test_bf16_is_close_and_says_so(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "checkpoint", small_architecture())
    bundle = build_engine(checkpoint, tmp_path / "engine", "precision=bf16")
    engine = load_engine(bundle)
    assert engine.manifest["precision"]["experts"] == "bfloat16"
    assert engine.manifest["measured"]["parity"]["mean_relative"] > 0
    assert engine.generate([[3, 4, 5]], max_tokens=12, max_denoising_steps=3)[0].token_ids
    engine.close()
