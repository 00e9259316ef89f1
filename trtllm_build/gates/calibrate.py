"""Scales of activations for recipes that fix them beforehand: the largest magnitude that each product reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.errors import require
from nemo_diffgemma.questions import Question
from trtllm_build.backends.cuda.backend import Cuda
from trtllm_build.backends.cuda.device_weights import DeviceWeights, from_checkpoint
from trtllm_build.backends.cuda.ops import Ops, reference_ops
from trtllm_build.gates.quality import answer
from trtllm_build.hardware import free_memory
from trtllm_build.network.weights import layer_file
from trtllm_build.quantization.fp8 import LARGEST, Rows, values_of, widen
from trtllm_build.quantization.recipe import named_recipe
from trtllm_build.runtime.engine import Engine
from trtllm_build.spec import EngineSpec

PRODUCTS = ("qkv", "o", "gate_up", "down", "experts_gate_up", "experts_down")
_ROOM = 1.2  # times the weights: caches, and one layer's intermediate rows
# What ``experts_down`` reads where the router's weights are multiplied before it instead of behind it.
WEIGHTED = "experts_down_weighted"


def calibrate(checkpoint: Checkpoint, spec: EngineSpec, questions: Sequence[Question]) -> dict[str, float]:
    """Answer questions with the unquantised model and watch what its products read.

    Whole answers are generated, so both phases are seen, noise, self-conditioning and all.

    Args:
        checkpoint: the model.
        spec: shapes, sampler, tokenizer and limits of the engine being built.
        questions: conversations like those that will be asked.

    Returns:
        ``layer_000.qkv`` and so on, all of :data:`PRODUCTS` and :data:`WEIGHTED` of all layers, to the scale of what it
        reads.

    Raises:
        FieldError: when the unquantised model does not fit into this machine's memory.
    """
    parameters = sum(torch.Size(shape).numel() for shape in checkpoint.text_shapes.values())
    device = _device(2 * parameters)
    weights = from_checkpoint(checkpoint, named_recipe("bf16"), device)
    largest: dict[str, float] = {}
    ops = recording_ops(weights, largest)
    engine = Engine(spec, Cuda(spec.arch, weights, ops, spec.limits, graphs=False), os.cpu_count())
    answer(engine, questions)
    engine.close()
    return {name: value / LARGEST for name, value in largest.items()}


def _device(wanted: int) -> torch.device:
    """Where bfloat16 weights of so many bytes, and what is computed with them, fit: a GPU first.

    Raises:
        FieldError: when they fit nowhere here.
    """
    free = {"cpu": free_memory()}
    if torch.cuda.is_available():
        free = {"cuda": torch.cuda.mem_get_info()[0]} | free
    fitting = [name for name, size in free.items() if _ROOM * wanted < size]
    require(
        bool(fitting),
        field="calibration",
        value=f"{max(free.values()) / 1e9:.0f} GB of free memory",
        allowed=f"{_ROOM * wanted / 1e9:.0f} GB, for the model in bfloat16 and what it computes",
        fix="build on a machine with as much, or with precision=bf16",
    )
    return torch.device(fitting[0])


def recording_ops(weights: DeviceWeights, largest: dict[str, float]) -> Ops:
    """The reference operations, which also raise ``largest[product]`` to the largest magnitude that it reads."""
    ops = reference_ops()
    names = {
        values_of(getattr(layer, product)).data_ptr(): f"{layer_file(index)}.{product}"
        for index, layer in enumerate(weights.layers)
        for product in PRODUCTS
    }

    def see(name: str | None, rows: Tensor) -> None:
        if name is not None and rows.numel():
            largest[name] = max(largest.get(name, 0.0), float(rows.abs().max()))

    def linear(x: Rows, weight: Rows, dtype: torch.dtype) -> Any:
        see(names.get(values_of(weight).data_ptr()), widen(x))
        return ops.linear(x, weight, dtype)

    def experts(x: Rows, gate_up: Rows, down: Rows, scores: Tensor, ids: Tensor, dtype: torch.dtype) -> Any:
        wide, matrices = widen(x), values_of(gate_up)
        see(names[matrices.data_ptr()], wide)
        name = names[values_of(down).data_ptr()]
        for expert in sorted(set(ids.flatten().tolist())):
            token, k = (ids == expert).nonzero(as_tuple=True)
            gate, up = (wide[token] @ matrices[expert].float().T).chunk(2, dim=-1)
            inner = F.gelu(gate, approximate="tanh") * up
            see(name, inner)
            see(name.replace("experts_down", WEIGHTED), inner * scores[token, k, None])
        return ops.experts(x, gate_up, down, scores, ids, dtype)

    return replace(ops, linear=linear, experts=experts)
