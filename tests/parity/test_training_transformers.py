"""Training computes what transformers computes, and exports what transformers loads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import Checkpoint, new_vision_tensors
from nemo_diffgemma.checkpoint_writer import write_checkpoint
from nemo_diffgemma.training.batches import Batch, Collator
from nemo_diffgemma.training.config import load_config
from nemo_diffgemma.training.data import Example
from nemo_diffgemma.training.export import export
from nemo_diffgemma.training.initial_weights import load_weights
from nemo_diffgemma.training.masks import canvas_positions, denoise_masks
from nemo_diffgemma.training.module import DiffusionGemmaModel
from nemo_diffgemma.training.network import build_network, materialise
from nemo_diffgemma.training.noise import TRAIN
from tests.support import GENERATION_CONFIG, random_architecture, random_tensors, small_architecture
from trtllm_build.gates.reference import Reference

VISION = load_config([]).arch.vision_config
LIMIT = 1e-5


def checkpoint_of(directory: Path, arch: Architecture, seed: int) -> Checkpoint:
    """Random weights; the scalars of the two phases differ, norms and scales are away from 1."""
    arch = arch.with_changes(vision_config=VISION)
    tensors = random_tensors(arch, seed) | new_vision_tensors(arch, seed)
    return Checkpoint(write_checkpoint(directory, arch, tensors, GENERATION_CONFIG))


def network_of(checkpoint: Checkpoint) -> Any:
    net = build_network(checkpoint.arch, train_router=True)
    materialise(net, torch.device("cpu"))
    load_weights(net, checkpoint)
    return net.train()


def examples_of(arch: Architecture, seed: int) -> list[Example]:
    """Prompts shorter and longer than the sliding window, one to three canvases."""
    g = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(arch.vocab_size, (length,), generator=g).tolist()

    window, canvas = arch.sliding_window, arch.canvas_length
    return [Example(ids(p), ids(c * canvas)) for p, c in ((1, 1), (window, 3), (2 * window + 3, 2), (window + 1, 1))]


def batch_of(arch: Architecture, examples: list[Example], seed: int) -> Batch:
    collator = Collator(examples, arch.canvas_length, arch.vocab_size, arch.pad_token_id, 0.5, seed)
    return collator(range(len(examples)), TRAIN, 3)


def reference_losses(reference: Reference, batch: Batch) -> tuple[Tensor, Tensor]:
    """Both losses, one example at a time, without a mask or a padding token: only what generation would see."""
    model = reference.model
    diffusion, autoregressive = torch.tensor(0.0), torch.tensor(0.0)
    for row in range(len(batch.ids)):
        start, ids = int(batch.block_start[row]), batch.ids[row][~batch.padding[row]]
        noisy, clean = batch.noisy[row], batch.clean[row]
        logits = reference.logits(ids[:start], noisy, None)
        if batch.self_condition[row]:
            logits = reference.logits(ids[:start], noisy, logits)
        diffusion += F.cross_entropy(logits, clean, reduction="sum")
        with torch.inference_mode():
            hidden = model.model.encoder(input_ids=ids[None]).last_hidden_state
            encoder_logits = torch.tanh(model.lm_head(hidden)[0] / 30) * 30
        autoregressive += F.cross_entropy(encoder_logits[:-1], ids[1:], reduction="sum")
    return diffusion / batch.total_canvas, autoregressive / batch.total_pairs


@pytest.mark.parametrize("seed", range(6))
def test_loss_equals_transformers(seed: int, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path / "checkpoint", random_architecture(seed), seed)
    arch = checkpoint.arch
    batch = batch_of(arch, examples_of(arch, seed), seed)
    model = SimpleNamespace(config=SimpleNamespace(arch=arch), net=network_of(checkpoint))
    diffusion, autoregressive = DiffusionGemmaModel.forward(model, batch)
    wanted = reference_losses(Reference(checkpoint), batch)
    assert diffusion.item() == pytest.approx(wanted[0].item(), rel=LIMIT)
    assert autoregressive.item() == pytest.approx(wanted[1].item(), rel=LIMIT)


def test_logits_equal_transformers_with_two_scalars_a_layer(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path / "checkpoint", small_architecture(), 5)
    arch, net, reference = checkpoint.arch, network_of(checkpoint), Reference(checkpoint)
    prompt, canvas = torch.arange(21), torch.arange(arch.canvas_length)
    start = torch.tensor([21])
    output = net(
        prompt[None],
        canvas_ids=canvas[None],
        encoder_padding_mask=torch.zeros(1, 21, dtype=torch.bool),
        decoder_position_ids=canvas_positions(start, arch.canvas_length),
        decoder_attention_mask=denoise_masks(start, 21, arch.canvas_length, arch.sliding_window, torch.float32),
        do_self_conditioning=torch.tensor([False]),
    )
    assert (output.logits[0] - reference.logits(prompt, canvas, None)).abs().max() < LIMIT * 10
    with torch.inference_mode():
        hidden = reference.model.model.encoder(input_ids=prompt[None]).last_hidden_state
        wanted = torch.tanh(reference.model.lm_head(hidden) / 30) * 30
    assert (output.encoder_logits - wanted).abs().max() < LIMIT * 10


@pytest.mark.parametrize("seed", range(3))
def test_export_of_what_was_loaded_changes_nothing(seed: int, tmp_path: Path) -> None:
    """Every tensor comes back; per_expert_scale is folded into down_proj, whose product with it is what counts."""
    checkpoint = checkpoint_of(tmp_path / "base", random_architecture(seed), seed)
    exported = Checkpoint(export(network_of(checkpoint), export_config(checkpoint, tmp_path / "out"), {}, {}))
    for name in checkpoint.text_shapes | checkpoint.vision_shapes:
        before, after = checkpoint.tensor(name), exported.tensor(name)
        if name.endswith("down_proj") and ".experts." in name:
            scale = name.replace("experts.down_proj", "router.per_expert_scale")
            before = before * checkpoint.tensor(scale)[:, None, None]
            after = after * exported.tensor(scale)[:, None, None]
        if not name.endswith("per_expert_scale"):
            assert torch.equal(before, after), name


def test_transformers_loads_the_export_with_nothing_missing(tmp_path: Path) -> None:
    from transformers import DiffusionGemmaForBlockDiffusion

    checkpoint = checkpoint_of(tmp_path / "base", small_architecture(), 2)
    out = export(network_of(checkpoint), export_config(checkpoint, tmp_path / "out"), {}, {})
    model, info = DiffusionGemmaForBlockDiffusion.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.generation_config.max_denoising_steps == 48
    prompt, canvas = torch.arange(13), torch.arange(checkpoint.arch.canvas_length)
    found = model(input_ids=prompt[None], decoder_input_ids=canvas[None]).logits[0]
    assert (found - Reference(checkpoint).logits(prompt, canvas, None)).abs().max() < LIMIT * 10


def export_config(checkpoint: Checkpoint, output: Path) -> Any:
    return SimpleNamespace(
        output=output,
        output_dtype="float32",
        init_from=checkpoint.directory,
        arch=checkpoint.arch,
        seed=0,
        run=output.parent,
        data=SimpleNamespace(tokenizer=checkpoint.directory),
    )
