"""From the trained network to a Hugging Face-layout checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import DECODER, Checkpoint, new_vision_tensors
from nemo_diffgemma.checkpoint import ENCODER_SCALAR as HF_ENCODER_SCALAR
from nemo_diffgemma.checkpoint_writer import write_checkpoint
from nemo_diffgemma.errors import require
from nemo_diffgemma.training.base import files_that_travel
from nemo_diffgemma.training.network import DECODER_SCALAR, ENCODER_SCALAR
from nemo_diffgemma.training.settings import TrainConfig

# Dtypes of a base, as safetensors spells them.
_STORED = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def export(
    net: Any, config: TrainConfig, conversations: Mapping[str, Iterable[str]], training: Mapping[str, Any]
) -> Path:
    """Gather the network and write ``config.output``; every process must call it, process 0 writes.

    Of a base checkpoint (``init_from``) everything that training does not change is kept: every key of its
    config.json, its generation_config.json, the vision tower, the dtype of each tensor, and every other file.

    Args:
        net: the trained network.
        config: of the run.
        conversations: that travel with the checkpoint: file name to JSON lines.
        training: contents of ``training.json``.

    Returns:
        ``config.output``.

    Raises:
        FieldError: when ``config.output`` has come to hold what this run did not write, or a weight has grown beyond
            what the output's dtype reaches.
        OSError: when it cannot be written.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(net, options=options)
    if not dist.is_initialized() or dist.get_rank() == 0:
        base = None if config.init_from is None else Checkpoint(config.init_from)
        assert config.data.tokenizer is not None
        tensors = hf_tensors(net, state)
        tensors |= new_vision_tensors(config.arch, config.seed) if base is None else _vision(base)
        write_checkpoint(
            config.output,
            config.arch,
            {name: _converted(name, tensor, _dtype(name, config, base)) for name, tensor in tensors.items()},
            (base.generation_config if base else {}) or generation_config(config.arch),
            files_that_travel(config.init_from, config.data.tokenizer),
            config=None if base is None else _config(base, config.output_dtype),
            texts={name: "".join(f"{line}\n" for line in lines) for name, lines in conversations.items()},
            training=training,
            writer=str(config.run.resolve()),
        )
    if dist.is_initialized():
        dist.barrier()
    return config.output


def _vision(base: Checkpoint) -> dict[str, Tensor]:
    return dict(base.tensors(base.vision_shapes))


def _dtype(name: str, config: TrainConfig, base: Checkpoint | None) -> torch.dtype:
    """The dtype that was asked for, or else the base's own, tensor by tensor, or else float32."""
    if config.output_dtype is not None:
        return getattr(torch, config.output_dtype)  # type: ignore[no-any-return]
    return torch.float32 if base is None else _STORED.get(base.stored_dtype(name), torch.float32)


def _converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    converted = tensor.to(dtype)
    require(
        bool(converted.isfinite().all()),
        field="output_dtype",
        value=f"{dtype}, for {name} with {float(tensor.abs().max()):.3g} in it".removeprefix("torch."),
        allowed=f"a dtype that reaches it; this one ends at {torch.finfo(dtype).max:.3g}",
        fix="pass output_dtype=bfloat16 and resume=auto: the last step is in the training checkpoint",
    )
    return converted


def _config(base: Checkpoint, dtype: str | None) -> dict[str, Any]:
    """The base's config.json; where another dtype was asked for, it is named wherever the base named one."""
    config: dict[str, Any] = json.loads((base.directory / "config.json").read_text(encoding="utf-8"))
    if dtype is not None:
        for part in (config, config.get("text_config"), config.get("vision_config")):
            for name in ("dtype", "torch_dtype"):
                if part and part.get(name) is not None:
                    part[name] = dtype
    return config


def hf_tensors(net: Any, state: dict[str, Any]) -> dict[str, Tensor]:
    """The text model's tensors by Hugging Face name, of a full (not sharded) state dict of the network.

    AutoModel's adapter knows one scalar per layer and drops the encoder's: both are written from their own buffers.
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
