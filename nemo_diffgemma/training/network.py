"""NeMo AutoModel's DiffusionGemma, with a layer scalar for each phase as the checkpoint has it."""

from __future__ import annotations

from typing import Any

import torch
from nemo_automodel.components.models.common import BackendConfig
from nemo_automodel.components.models.diffusion_gemma.model import DiffusionGemmaForBlockDiffusion
from torch import Tensor, nn
from transformers import DiffusionGemmaConfig

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.hf_config import write_config

DECODER_SCALAR, ENCODER_SCALAR = "decoder_layer_scalar", "encoder_layer_scalar"


def build_network(arch: Architecture, train_router: bool) -> Any:
    """The network on the meta device, in float32: shapes only, until :func:`materialise`.

    AutoModel runs one stack of layers in both phases, and keeps one scalar per layer. Checkpoints hold one for each
    phase, so AutoModel's stays at 1 and a hook multiplies a layer's output with the scalar of the phase it ran in.

    Args:
        arch: what to build.
        train_router: whether routers learn; AutoModel's recipe freezes them.
    """
    values = write_config(arch)
    # without it AutoModel makes the experts bfloat16
    values["text_config"]["torch_dtype"] = "float32"
    backend = BackendConfig(
        attn="sdpa",
        linear="torch",
        rms_norm="torch",
        experts="torch_mm",
        dispatcher="torch",
        enable_hf_state_dict_adapter=True,
    )
    with torch.device("meta"):
        net = DiffusionGemmaForBlockDiffusion(
            DiffusionGemmaConfig(**values), backend=backend, freeze_router=not train_router
        )
        for layer in net.model.layers.values():
            layer.register_buffer(DECODER_SCALAR, torch.ones(1))
            layer.register_buffer(ENCODER_SCALAR, torch.ones(1))
            layer.register_forward_hook(_scale_by_phase, with_kwargs=True)
    return net


def _scale_by_phase(
    layer: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor, Any]
) -> tuple[Tensor, Any]:
    hidden, kv = output
    scalar = layer.get_buffer(ENCODER_SCALAR if kwargs.get("encoder_kv") is None else DECODER_SCALAR)
    return hidden * scalar.to(hidden.dtype), kv


def materialise(net: Any, device: torch.device) -> None:
    """Give a network built by :func:`build_network` memory on ``device``, sharded already or not.

    Parameters hold anything until weights are filled in; buffers hold their values.
    """
    config = net.text_config
    net.to_empty(device=device)
    net.tie_weights()
    model = net.model
    with device:
        model.rotary_emb = type(model.rotary_emb)(config)
        model.embed_tokens.embed_scale = torch.tensor(config.hidden_size**0.5)
        for layer in model.layers.values():
            layer.moe.gate.root_size = torch.tensor(config.hidden_size**-0.5)
            # getattr: activation checkpointing may have wrapped the layer, and wrappers only pass attributes on
            for name in ("layer_scalar", DECODER_SCALAR, ENCODER_SCALAR):
                getattr(layer, name).fill_(1)
