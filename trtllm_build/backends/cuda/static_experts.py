"""Experts by a kernel whose scales are fixed beforehand, which is what TensorRT-LLM's takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from trtllm_build.backends.cuda.device_weights import DeviceWeights
from trtllm_build.network.weights import layer_file
from trtllm_build.providers.tensorrt_llm.layout import Packed, pack
from trtllm_build.quantization.fp8 import Fp8, Rows, values_of

Run = Callable[[Packed, Tensor, Tensor, Tensor], Tensor]
"""``run(packed, x [tokens, hidden], weights [tokens, top_k], ids [tokens, top_k])``: ``[tokens, hidden]``."""


class StaticExperts:
    """As :func:`trtllm_build.kernels.experts.feed_forward.experts`, but reads rows that are not quantised yet.

    Args:
        packed: layers by the address of their first product's values (:func:`pack_layers`).
        run: the kernel, or its reference.
    """

    reads_plain = True

    def __init__(self, packed: Mapping[int, Packed], run: Run):
        self._packed = packed
        self._run = run

    def __call__(self, x: Rows, gate_up: Rows, _down: Rows, weights: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
        assert isinstance(x, Tensor), "a provider that reads plain rows was given quantised ones"
        return self._run(self._packed[values_of(gate_up).data_ptr()], x, weights, ids).to(dtype)


def pack_layers(weights: DeviceWeights, scales: Mapping[str, float], in_place: bool) -> dict[int, Packed]:
    """Every layer's experts in the kernel's layout.

    Args:
        weights: with one scale per expert and matrix.
        scales: of what each product reads (:func:`trtllm_build.gates.calibrate.calibrate`).
        in_place: write over the weights: no other provider can read them then. Otherwise the first product is there
            twice, 15 GB more for the 26B model.
    """
    packed = {}
    for index, layer in enumerate(weights.layers):
        gate_up, down = layer.experts_gate_up, layer.experts_down
        assert isinstance(gate_up, Fp8), "static scales are for quantised experts"
        assert isinstance(down, Fp8), "static scales are for quantised experts"
        name, device = layer_file(index), gate_up.scale.device
        read = (torch.tensor(scales[f"{name}.{p}"], device=device) for p in ("experts_gate_up", "experts_down"))
        found = pack(gate_up.values, gate_up.scale[:, 0], down.values, down.scale[:, 0], *read)
        if in_place:
            gate_up.values.view(torch.uint8).copy_(found.up_gate.view(torch.uint8))
            found = replace(found, up_gate=gate_up.values)
        packed[gate_up.values.data_ptr()] = found
    return packed
