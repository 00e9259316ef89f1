"""What several tests need: random architectures and checkpoints of the whole anatomy."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from nemo_diffgemma.architecture import GLOBAL, SLIDING, Architecture
from nemo_diffgemma.checkpoint import text_tensors
from nemo_diffgemma.checkpoint_writer import write_checkpoint
from nemo_diffgemma.new_tokenizer import SPECIAL_TOKENS, train_tokenizer
from trtllm_build.pipeline import build
from trtllm_build.plan import make_plan

GENERATION_CONFIG: dict[str, Any] = {
    "max_denoising_steps": 48,
    "t_min": 0.4,
    "t_max": 0.8,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
    "stability_threshold": 1,
    "confidence_threshold": 0.005,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": [1],
}
# The smallest vision tower that transformers accepts with a DiffusionGemma.
SMALL_VISION: dict[str, Any] = {
    "model_type": "gemma4_vision",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "position_embedding_size": 16,
    "pooling_kernel_size": 1,
}


def small_architecture(**changes: Any) -> Architecture:
    """Three layers, two of them sliding, every part of the released anatomy."""
    values: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_global_key_value_heads": 1,
        "global_head_dim": 16,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
        "sliding_window": 9,
        "layer_types": (SLIDING, SLIDING, GLOBAL),
        "canvas_length": 8,
        "max_position_embeddings": 256,
    }
    return Architecture(**(values | changes))


def random_architecture(seed: int) -> Architecture:
    """An architecture drawn at random; the same seed gives the same one."""
    g = torch.Generator().manual_seed(seed)

    def pick(*options: int) -> int:
        return options[int(torch.randint(len(options), (1,), generator=g))]

    layers = pick(1, 2, 3, 4, 6)
    kinds = tuple(GLOBAL if i == layers - 1 or pick(0, 0, 1) else SLIDING for i in range(layers))
    heads = pick(2, 4, 8)
    experts = pick(2, 4, 16)
    return small_architecture(
        vocab_size=pick(50, 97, 300),
        hidden_size=pick(16, 24, 64),
        intermediate_size=pick(16, 40),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=pick(1, 2),
        head_dim=pick(8, 16),
        num_global_key_value_heads=pick(1, 2),
        global_head_dim=pick(16, 32),
        num_experts=experts,
        top_k_experts=pick(1, 2),
        moe_intermediate_size=pick(8, 24),
        sliding_window=pick(2, 5, 16),
        layer_types=kinds,
        canvas_length=pick(4, 8, 32),
        final_logit_softcapping=30.0,
    )


def random_tensors(arch: Architecture, seed: int) -> dict[str, torch.Tensor]:
    """Weights in a range that keeps activations alive; norms and scales away from 1, two scalars per layer."""
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in text_tensors(arch).items():
        if name.endswith(("norm.weight", "scale", "layer_scalar")) or "layernorm" in name:
            tensors[name] = 0.7 + 0.6 * torch.rand(shape, generator=g)
        else:
            tensors[name] = torch.randn(shape, generator=g) * shape[-1] ** -0.5
    return tensors


def random_checkpoint(directory: Path, arch: Architecture, seed: int = 0, tokenizer_files: Iterable[Path] = ()) -> Path:
    """A whole checkpoint of random weights."""
    files = {path.name: path for path in tokenizer_files}
    return write_checkpoint(directory, arch, random_tensors(arch, seed), GENERATION_CONFIG, files)


def text_checkpoint(folder: Path) -> Path:
    """A random checkpoint with a tokenizer and a chat template, in ``folder/model``."""
    words = ["red", "green", "blue", "chair", "table", "lamp", "größe", "naïve", "日本", "12", "345", "window"]
    files = train_tokenizer([" ".join(words)] * 3, 300, folder / "tokenizer")
    arch = small_architecture(vocab_size=300, canvas_length=16, eos_token_ids=(1, SPECIAL_TOKENS.index("<turn|>")))
    config = GENERATION_CONFIG | {"eos_token_id": list(arch.eos_token_ids)}
    return write_checkpoint(folder / "model", arch, random_tensors(arch, 7), config, {p.name: p for p in files})


def quick_engine(checkpoint: Path, folder: Path) -> Path:
    """An engine of random weights that ends a canvas after two steps; otherwise a random model does not for long."""
    shutil.copytree(checkpoint, folder / "checkpoint")
    config = folder / "checkpoint" / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_denoising_steps": 2}))
    wide = folder / "checkpoint" / "config.json"  # for a schema, or tools, in the prompt
    wide.write_text(re.sub(r'("max_position_embeddings"): \d+', r"\1: 4096", wide.read_text()))
    plan = ["compile=false", f"checkpoint={folder / 'checkpoint'}", f"out={folder / 'engine'}"]
    build(make_plan(plan), lambda _line: None)
    return folder / "engine"
