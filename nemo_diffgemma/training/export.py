"""From the trained network to a Hugging Face-layout checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import (
    DECODER,
    TOKENIZER_FILES,
    Checkpoint,
    new_vision_tensors,
)
from nemo_diffgemma.checkpoint import ENCODER_SCALAR as HF_ENCODER_SCALAR
from nemo_diffgemma.checkpoint_writer import write_checkpoint
from nemo_diffgemma.training.config import TrainConfig
from nemo_diffgemma.training.network import DECODER_SCALAR, ENCODER_SCALAR


def export(net: Any, config: TrainConfig, said: Mapping[str, Iterable[str]]) -> Path:
    """Gather the network and write ``config.output``; every process must call it, process 0 writes.

    Args:
        net: the trained network.
        config: of the run.
        said: conversations that travel with the checkpoint: file name to lines of JSON.

    Returns:
        ``config.output``.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(net, options=options)
    if not dist.is_initialized() or dist.get_rank() == 0:
        dtype = getattr(torch, config.output_dtype)
        base = None if config.init_from is None else Checkpoint(config.init_from)
        tensors = hf_tensors(net, state)
        if base is None:
            tensors |= new_vision_tensors(config.arch, config.seed)
        else:
            tensors |= dict(base.tensors(base.vision_shapes))
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        generation = (base.generation_config if base else {}) or generation_config(config.arch)
        files = tokenizer_files(config)
        write_checkpoint(config.output, config.arch, tensors, generation, files, said)
    if dist.is_initialized():
        dist.barrier()
    return config.output


def hf_tensors(net: Any, state: dict[str, Any]) -> dict[str, Tensor]:
    """The text model's tensors by Hugging Face name, of a full (not sharded) state dict of the network.

    AutoModel's adapter knows one scalar a layer and drops the encoder's: both are written from their own buffers.
    """
    scalars = {}
    for index in net.model.layers:
        prefix = f"model.layers.{index}."
        state.pop(f"{prefix}layer_scalar")
        scalars[f"{DECODER}layers.{index}.layer_scalar"] = state.pop(prefix + DECODER_SCALAR)
        scalars[HF_ENCODER_SCALAR.format(index)] = state.pop(prefix + ENCODER_SCALAR)
    tensors: dict[str, Tensor] = net.state_dict_adapter.to_hf(state)
    return tensors | scalars


def generation_config(arch: Architecture) -> dict[str, Any]:
    """Sampler defaults of the released checkpoint, in transformers' format."""
    return {
        "max_denoising_steps": 48,
        "t_min": 0.4,
        "t_max": 0.8,
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
        "stability_threshold": 1,
        "confidence_threshold": 0.005,
        "bos_token_id": arch.bos_token_id,
        "eos_token_id": list(arch.eos_token_ids),
        "pad_token_id": arch.pad_token_id,
    }


def tokenizer_files(config: TrainConfig) -> list[Path]:
    """The tokenizer's files that travel with the checkpoint."""
    directory = config.data.tokenizer
    return [] if directory is None else [directory / n for n in TOKENIZER_FILES if (directory / n).is_file()]
