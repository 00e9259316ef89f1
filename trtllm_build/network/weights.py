"""The engine's weights: plain tensors under the names the network uses, one file per layer in the bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self, TypeAlias

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import DECODER, ENCODER_SCALAR

if TYPE_CHECKING:
    from torch import Tensor  # what only asks for names, as a server does, starts ten times faster without it

# what the network calls a tensor -> what the checkpoint calls it, below model.decoder.layers.N.
_LAYER_NAMES = {
    "q_proj": "self_attn.q_proj.weight",
    "k_proj": "self_attn.k_proj.weight",
    "v_proj": "self_attn.v_proj.weight",
    "o_proj": "self_attn.o_proj.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "gate_proj": "mlp.gate_proj.weight",
    "up_proj": "mlp.up_proj.weight",
    "down_proj": "mlp.down_proj.weight",
    "router_proj": "router.proj.weight",
    "router_scale": "router.scale",
    "per_expert_scale": "router.per_expert_scale",
    "experts_gate_up": "experts.gate_up_proj",
    "experts_down": "experts.down_proj",
    "input_norm": "input_layernorm.weight",
    "post_attention_norm": "post_attention_layernorm.weight",
    "pre_mlp_norm": "pre_feedforward_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm_1.weight",
    "pre_experts_norm": "pre_feedforward_layernorm_2.weight",
    "post_experts_norm": "post_feedforward_layernorm_2.weight",
    "post_feedforward_norm": "post_feedforward_layernorm.weight",
    "denoise_scalar": "layer_scalar",
}
_HEAD_NAMES = {
    "embedding": f"{DECODER}embed_tokens.weight",
    "final_norm": f"{DECODER}norm.weight",
    "conditioning_norm": f"{DECODER}self_conditioning.pre_norm.weight",
    "conditioning_gate_proj": f"{DECODER}self_conditioning.gate_proj.weight",
    "conditioning_up_proj": f"{DECODER}self_conditioning.up_proj.weight",
    "conditioning_down_proj": f"{DECODER}self_conditioning.down_proj.weight",
}
HEAD = "head"
SCALE = ".scale"  # behind a quantised tensor's name: its scales, one an output channel

Read: TypeAlias = "Callable[[str, str], Tensor]"


@dataclass(frozen=True)
class LayerWeights:
    """Tensors of one layer; shapes as in :func:`nemo_diffgemma.checkpoint.layer_tensors`."""

    q_proj: Tensor
    k_proj: Tensor
    v_proj: Tensor | None  # None in global layers: the value is the un-normed key projection
    o_proj: Tensor
    q_norm: Tensor
    k_norm: Tensor
    gate_proj: Tensor
    up_proj: Tensor
    down_proj: Tensor
    router_proj: Tensor
    router_scale: Tensor
    per_expert_scale: Tensor
    experts_gate_up: Tensor
    experts_down: Tensor
    input_norm: Tensor
    post_attention_norm: Tensor
    pre_mlp_norm: Tensor
    post_mlp_norm: Tensor
    pre_experts_norm: Tensor
    post_experts_norm: Tensor
    post_feedforward_norm: Tensor
    denoise_scalar: Tensor
    encode_scalar: Tensor


@dataclass(frozen=True)
class NetworkWeights:
    """Everything the network reads. The embedding ``[vocab, hidden]`` is also the output projection."""

    embedding: Tensor
    final_norm: Tensor
    conditioning_norm: Tensor
    conditioning_gate_proj: Tensor
    conditioning_up_proj: Tensor
    conditioning_down_proj: Tensor
    layers: tuple[LayerWeights, ...]

    @classmethod
    def read(cls, arch: Architecture, read: Read) -> Self:
        """Assemble from ``read(file, name)``, where ``file`` is ``head`` or ``layer_000`` and on."""
        layers = []
        for index in range(arch.num_hidden_layers):
            names = layer_names(arch, index)
            values: dict[str, Tensor | None] = {name: read(layer_file(index), name) for name in names}
            values.setdefault("v_proj", None)
            layers.append(LayerWeights(**values))  # type: ignore[arg-type]
        head = {f.name: read(HEAD, f.name) for f in fields(cls) if f.name != "layers"}
        return cls(layers=tuple(layers), **head)


def layer_file(layer: int) -> str:
    """Name of the weight file of one layer, without suffix."""
    return f"layer_{layer:03d}"


def layer_names(arch: Architecture, layer: int) -> dict[str, str]:
    """The network's name -> the checkpoint's name, for one layer."""
    names = {ours: f"{DECODER}layers.{layer}.{theirs}" for ours, theirs in _LAYER_NAMES.items()}
    if arch.is_global(layer):
        del names["v_proj"]
    return names | {"encode_scalar": ENCODER_SCALAR.format(layer)}


def weight_files(arch: Architecture) -> dict[str, dict[str, str]]:
    """File -> {the network's name -> the checkpoint's name}: the bundle's weights, in the order they are written."""
    files = {HEAD: dict(_HEAD_NAMES)}
    return files | {layer_file(i): layer_names(arch, i) for i in range(arch.num_hidden_layers)}
