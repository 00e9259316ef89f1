"""Filling a network: fresh random weights, or those of a checkpoint; whole or sharded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from nemo_diffgemma.checkpoint import DECODER, Checkpoint, layer_tensors
from nemo_diffgemma.checkpoint import ENCODER_SCALAR as HF_ENCODER_SCALAR
from nemo_diffgemma.training.network import DECODER_SCALAR, ENCODER_SCALAR

_EMBEDDING = f"{DECODER}embed_tokens.weight"


@torch.no_grad()
def initialise(net: Any, seed: int) -> None:
    """Random weights, the same whichever way the network is sharded.

    Matrices are normal with standard deviation fan-in^-0.5, the embedding hidden^-0.5 (scaled, its rows have unit
    RMS). q is normed to RMS head_dim^-0.5, which makes attention start at the usual 1/sqrt(head_dim) although the
    architecture has no such factor: with norms of 1 it starts nearly one-hot and learns to copy far more slowly.
    Attention's output projection is the value projection's transpose, so that what is attended to arrives as what it
    is (mimetic initialisation, Trockman and Kolter 2023, arXiv:2305.09828): answers copy words of their prompts.
    """
    shapes = {name: parameter.shape for name, parameter in named_weights(net)}
    for name, parameter in named_weights(net):
        shape = parameter.shape
        if name.endswith("q_norm.weight"):
            value = torch.full(shape, shape[0] ** -0.5)
        elif len(shape) == 1:
            value = torch.ones(shape)
        elif name.endswith("o_proj.weight"):
            layer = name.removesuffix("o_proj.weight")
            # where a layer has no values of its own, its keys are
            source = next(n for n in (f"{layer}v_proj.weight", f"{layer}k_proj.weight") if n in shapes)
            head_dim = shapes[f"{layer}q_norm.weight"][0]
            heads = _random(source, shapes[source], seed).view(-1, head_dim, shape[0])
            shared = shape[1] // head_dim // len(heads)
            value = heads.repeat_interleave(shared, 0).flatten(0, 1).T * (shape[0] / shape[1]) ** 0.5
        else:
            value = _random(name, shape, seed)
        _assign(parameter, value)


def _random(name: str, shape: torch.Size, seed: int) -> Tensor:
    # AutoModel stores experts [experts, in, out]; Linear and embedding [out, in]
    generator = torch.Generator().manual_seed(_name_seed(name, seed))
    return torch.randn(shape, generator=generator).mul_(shape[1] ** -0.5)


@torch.no_grad()
def load_weights(net: Any, checkpoint: Checkpoint) -> None:
    """Fill the network from a Hugging Face-layout checkpoint, layer by layer, keeping only this process's shards."""
    parameters = dict(named_weights(net))
    filled = set()
    for name, value in _converted(net, checkpoint):
        _assign(parameters[name], value)
        filled.add(name)
    assert filled == parameters.keys(), sorted(parameters.keys() - filled)
    for index, layer in net.model.layers.items():
        decoder = checkpoint.tensor(f"{DECODER}layers.{index}.layer_scalar")
        encoder = checkpoint.tensor(HF_ENCODER_SCALAR.format(index))
        getattr(layer, DECODER_SCALAR).copy_(decoder)
        getattr(layer, ENCODER_SCALAR).copy_(encoder)


def named_weights(net: Any) -> Iterator[tuple[str, Any]]:
    """Every parameter once, under the name it has without wrappers."""
    for name, parameter in net.named_parameters():
        name = name.replace("_checkpoint_wrapped_module.", "")
        if name != "lm_head.weight":
            yield name, parameter


def _converted(net: Any, checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """AutoModel's names and layouts, one layer at a time."""
    arch = checkpoint.arch
    embedding = checkpoint.tensor(_EMBEDDING).float()
    layered = f"{DECODER}layers."
    outside = [n for n in checkpoint.text_shapes if n.startswith(DECODER) and not n.startswith(layered)]
    groups = [outside]
    for index in range(arch.num_hidden_layers):
        groups.append([f"{layered}{index}.{n}" for n in layer_tensors(arch, index) if n != "layer_scalar"])
    for number, names in enumerate(groups):
        tensors = {name: tensor.float() for name, tensor in checkpoint.tensors(names)}
        # the adapter insists on an embedding in every call
        converted = net.state_dict_adapter.from_hf(tensors | {_EMBEDDING: embedding})
        converted.pop("lm_head.weight")
        if number:
            converted.pop("model.embed_tokens.weight")
        yield from converted.items()


def _assign(parameter: Any, value: Tensor) -> None:
    if isinstance(parameter, DTensor):
        # every process holds the whole value and keeps its own part of it: nothing is sent
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(value.to_local())
    else:
        parameter.copy_(value)


def _name_seed(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest(), "big")
