"""TensorRT-LLM's fused experts as a provider: where its library lies, and how an engine comes to use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from trtllm_build.backends.cuda.device_weights import DeviceWeights
from trtllm_build.backends.cuda.ops import TENSORRT_LLM, Ops, Provider, chosen_ops
from trtllm_build.backends.cuda.static_experts import StaticExperts, pack_layers
from trtllm_build.providers.tensorrt_llm.build import DEFAULT_OUT, LIBRARY
from trtllm_build.providers.tensorrt_llm.layout import Packed, reference
from trtllm_build.providers.tensorrt_llm.library import FusedExperts, Tactic
from trtllm_build.spec import EngineSpec, input_scales

TACTIC = "experts_tactic"


def built_library() -> Path | None:
    """The newest library that ``python -m trtllm_build.providers.tensorrt_llm build`` wrote, if any."""
    found = sorted(DEFAULT_OUT.glob(f"*/{LIBRARY}"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


class Tuning:
    """The kernel with the tile and cluster shapes that are quickest for what it is first called with."""

    def __init__(self, library: Path):
        self._kernel = FusedExperts(library)
        self.tactic: Tactic | None = None

    def __call__(self, packed: Packed, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        self.tactic = self.tactic or self._kernel.fastest(packed, x, weights, ids)
        return self._kernel(packed, x, weights, ids, self.tactic)


def provider(kernel: Tuning, weights: DeviceWeights, scales: Mapping[str, float]) -> Provider:
    """The provider, for measuring it beside others."""
    packed = pack_layers(weights, scales, in_place=False)
    return Provider(StaticExperts(packed, kernel), StaticExperts(packed, reference))


def simulated(ops: Ops, weights: DeviceWeights, scales: Mapping[str, float]) -> Ops:
    """``ops`` with what the kernel computes in place of their experts, on any device."""
    return replace(ops, experts=StaticExperts(pack_layers(weights, scales, in_place=False), reference))


def loaded_ops(spec: EngineSpec, weights: DeviceWeights) -> Ops:
    """Who provides each operation of a finished bundle. Where it is this kernel, its experts are packed in place."""
    ops = chosen_ops(spec.runtime)
    chosen: dict[str, Any] = spec.runtime.get("ops", {}).get("experts", {})
    if chosen.get("provider") != TENSORRT_LLM:
        return ops
    kernel = FusedExperts(spec.directory / LIBRARY)
    run = partial(kernel, tactic=tuple(spec.runtime[TACTIC]))
    return replace(ops, experts=StaticExperts(pack_layers(weights, input_scales(spec.directory), in_place=True), run))
