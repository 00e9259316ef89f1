"""A bundle with a plan, ready to run on the GPU it is for."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from nemo_diffgemma.errors import require
from trtllm_build.backends.lowered import Lowered
from trtllm_build.backends.tensorrt_rtx.runner import Runner
from trtllm_build.contract import CanvasStep, EncodeStep
from trtllm_build.network.weights import HEAD
from trtllm_build.spec import EngineSpec

ENGINE_FILE = "plan"  # the plan's file in a bundle


def load(spec: EngineSpec) -> Lowered:
    """Load the bundle's plan, and have TensorRT-RTX generate its kernels for this device, or read those of last time.

    Raises:
        FieldError: naming the device that the plan is for, when this machine has another or none.
    """
    version = spec.runtime["tensorrt_rtx"]
    runner = Runner(spec.directory / ENGINE_FILE, spec.manifest["hardware"], version, _kernels(spec))

    def table() -> Tensor:
        path = spec.weight_path(HEAD)
        require(
            path.is_file(),
            field="engine:weights",
            value=str(path),
            allowed="the embedding, to check logits",
            fix="build the engine again",
        )
        with safe_open(path, "pt") as file:
            tensor: Tensor = file.get_tensor("embedding")
        return tensor

    backend = Lowered(spec.arch, torch.bfloat16, torch.device("cuda"), runner, table)
    _warm_up(backend)
    runner.save_kernels()
    return backend


def _warm_up(backend: Lowered) -> None:
    """Both phases once: kernels are generated when they are first needed, which takes far longer than running them."""
    ids = torch.zeros(backend.arch.canvas_length, dtype=torch.int64)
    backend.admit(0, 2 * len(ids), 0)
    (encoded,) = backend.encode([EncodeStep(0, ids, 0)])
    (denoised,) = backend.denoise([CanvasStep(0, ids, None, 1.0, torch.full((len(ids),), 0.5))])
    backend.release(0)
    for result in (encoded, denoised):
        if isinstance(result, Exception):
            raise result


def _kernels(spec: EngineSpec) -> Path:
    """Outside the bundle, whose files are hashed and may not change."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "diffgemma" / f"{spec.manifest['manifest_hash']}.kernels"
