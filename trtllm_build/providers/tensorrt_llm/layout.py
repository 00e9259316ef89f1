"""The fused experts in fp8: how their weights and scales lie, and what they compute.

One weight scale per expert and matrix, one activation scale a product, both static: the epilogue of the grouped product
reads a single float an expert (``alpha_scale_ptr_array[expert]``). Scales per output channel or per token, our own fp8
recipe, do not fit; upstream's finer scales are those of its 4-bit, MX and DeepSeek (blocks of 128) formats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_diffgemma.errors import require
from trtllm_build.network.experts import gelu_gated
from trtllm_build.quantization.fp8 import DTYPE, LARGEST

# rows are read in pieces of 16 bytes, by TMA and by the gate alike
ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Packed:
    """The experts of one layer as the kernel reads them; contiguous, on one device.

    In brackets what ``quant_scales`` of ``flashinfer.fused_moe.cutlass_fused_moe`` calls them, in its order.

    Attributes:
        up_gate: ``[experts, 2 * width, hidden]`` e4m3, up's rows before gate's.
        down: ``[experts, hidden, width]`` e4m3.
        up_gate_scale: ``[experts]`` float32, weight scale times input scale (fc1_dequant).
        quantise: ``[experts]`` float32, one over the scale of the gated activations (fc2_quant).
        down_scale: ``[experts]`` float32, weight scale times the scale of the gated activations (fc2_dequant).
        input_scale: ``[]`` float32, by which the layer's input is divided (fc1_input_dequant, which only LoRA reads).
    """

    up_gate: Tensor
    down: Tensor
    up_gate_scale: Tensor
    quantise: Tensor
    down_scale: Tensor
    input_scale: Tensor


def pack(
    gate_up: Tensor,
    gate_up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
    input_scale: Tensor,
    gated_scale: Tensor,
) -> Packed:
    """Turn a checkpoint's quantised experts into the kernel's layout.

    A number is its fp8 value times its scale.

    Args:
        gate_up: ``[experts, 2 * width, hidden]`` e4m3, gate's rows before up's.
        gate_up_scale: ``[experts]`` float32.
        down: ``[experts, hidden, width]`` e4m3.
        down_scale: ``[experts]`` float32.
        input_scale: ``[]`` float32, of the layer's input.
        gated_scale: ``[]`` or ``[experts]`` float32, of ``gelu_tanh(gate) * up``.

    Raises:
        FieldError: Weights are not e4m3, a shape is not the above, or hidden or width is no multiple of 16.
    """
    experts, hidden, width = down.shape
    for name, weight in (("gate_up", gate_up), ("down", down)):
        require(
            weight.dtype == DTYPE,
            field=f"{name}.dtype",
            value=weight.dtype,
            allowed=str(DTYPE),
            fix="quantise the experts to e4m3 first",
        )
    for name, size in (("hidden", hidden), ("width", width)):
        require(
            size % ALIGNMENT == 0,
            field=name,
            value=size,
            allowed=f"a multiple of {ALIGNMENT}",
            fix="use another provider of experts",
        )
    shapes = (
        ("gate_up", gate_up, (experts, 2 * width, hidden)),
        ("gate_up_scale", gate_up_scale, (experts,)),
        ("down_scale", down_scale, (experts,)),
        ("input_scale", input_scale, ()),
        ("gated_scale", gated_scale.expand(experts), (experts,)),
    )
    for name, tensor, shape in shapes:
        found = tuple(tensor.shape)
        require(
            found == shape,
            field=f"{name}.shape",
            value=found,
            allowed=str(shape),
            fix="quantise with one scale per expert and matrix",
        )
    gate, up = gate_up.view(torch.uint8).chunk(2, dim=1)
    gated_scale = gated_scale.float().expand(experts)
    return Packed(
        torch.cat([up, gate], dim=1).view(DTYPE),
        down.contiguous(),
        gate_up_scale.float() * input_scale.float(),
        gated_scale.reciprocal(),
        down_scale.float() * gated_scale,
        input_scale.float(),
    )


def quantise(x: Tensor, scale: Tensor) -> Tensor:
    """``x / scale`` in e4m3, to nearest, saturating as CUDA's conversion does (torch's own gives NaN)."""
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(DTYPE)


def reference(packed: Packed, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """What the kernel computes from the packed tensors, step for step, on any device.

    From ``cutlass_fused_moe_kernels.cuh`` of flashinfer 0.7.2: ``gemm1`` scales and writes bf16; ``doActivationKernel``
    reads the gate ``inter_size`` columns after the linear half, computes in float32 and quantises with ``fp8_quant``;
    ``gemm2`` scales and writes bf16; ``finalizeMoeRoutingKernel`` sums in float32, in the order of ``ids``.
    Not imitated: the tensor core's shortened accumulator (``FP8FastAccum``), and ``tanh.approx.f32``, off by 2**-11.

    Args:
        packed: The experts.
        x: ``[tokens, hidden]``, unquantised.
        weights: ``[tokens, top_k]`` float32.
        ids: ``[tokens, top_k]`` expert ids.

    Returns:
        ``[tokens, hidden]`` bf16.
    """
    inputs = quantise(x, packed.input_scale).float()
    output = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for slot in range(ids.shape[1]):
        for expert in torch.unique(ids[:, slot]).tolist():
            rows = (ids[:, slot] == expert).nonzero().flatten()
            product = inputs[rows] @ packed.up_gate[expert].float().T * packed.up_gate_scale[expert]
            up, gate = product.bfloat16().float().chunk(2, dim=-1)
            gated = quantise(gelu_gated(gate, up) * packed.quantise[expert], torch.ones_like(packed.input_scale))
            product = gated.float() @ packed.down[expert].float().T * packed.down_scale[expert]
            output[rows] += weights[rows, slot, None] * product.bfloat16().float()
    return output.bfloat16()
