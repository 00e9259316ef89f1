"""A plan on the GPU it was compiled for."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt
import torch
from torch import Tensor

from nemo_diffgemma.errors import require
from trtllm_build.bundle import describe
from trtllm_build.hardware import has_gpu

_DTYPES = {
    trt.DataType.BF16: torch.bfloat16,
    trt.DataType.FLOAT: torch.float32,
    trt.DataType.INT64: torch.int64,
}


def check_device(hardware: Mapping[str, Any], version: str) -> None:
    """Refuse a plan that this machine cannot run, before a byte of it is read.

    Args:
        hardware: what it was compiled for, ``{kind, name, sm}``.
        version: of the TensorRT-RTX that compiled it.

    Raises:
        FieldError: naming the device it is for, or the version it needs.
    """
    device = describe(dict(hardware))
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA GPU"
    require(
        has_gpu(hardware["sm"]),
        field="engine:hardware",
        value=f"a plan for {device}",
        allowed=f"what this machine has: {here}",
        fix=f"load it on {device}, or run `make engine GPU=cpu` here",
    )
    require(
        trt.__version__ == version,
        field="engine:tensorrt_rtx",
        value=f"a plan of TensorRT-RTX {version}",
        allowed=f"{trt.__version__}, which is installed",
        fix=f"run `pip install tensorrt-rtx-cu13=={version}`, or build the engine again",
    )


class Runner:
    """Executes a plan; see :data:`trtllm_build.backends.lowered.Run`.

    Args:
        plan: file of the plan.
        hardware: what it was compiled for.
        version: of the TensorRT-RTX that compiled it.
        kernels: file of the kernels that TensorRT-RTX generated for this device: read when it is there, and written by
            :meth:`save_kernels`. Without it the first calls generate them again.

    Raises:
        FieldError: when the plan is for another device or version, or TensorRT-RTX does not take it.
    """

    def __init__(self, plan: Path, hardware: Mapping[str, Any], version: str, kernels: Path):
        check_device(hardware, version)
        self._kernels = kernels
        self._log = trt.Logger(trt.Logger.WARNING)
        runtime = trt.Runtime(self._log)
        with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            engine = runtime.deserialize_cuda_engine(memoryview(content))
        field = f"engine:{plan.name}"
        fix = "build the engine on this machine: the same command does it in minutes"
        require(
            engine is not None, field=field, value="refused by TensorRT-RTX", allowed="a plan that it loads", fix=fix
        )
        config = engine.create_runtime_config()
        self._cache = config.create_runtime_cache()
        if kernels.is_file():
            self._cache.deserialize(kernels.read_bytes())
        config.set_runtime_cache(self._cache)
        self._runtime, self._engine, self._context = runtime, engine, engine.create_execution_context(config)
        # of its own: TensorRT synchronises on the default one
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._outputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT]

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Execute once, and wait for it."""
        engine, context = self._engine, self._context
        self._stream.wait_stream(torch.cuda.current_stream())
        held = dict(inputs)
        for name, tensor in inputs.items():
            if engine.get_tensor_location(name) == trt.TensorLocation.HOST:  # a shape depends on its value
                held[name] = tensor.cpu()
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise ValueError(f"{name} {tuple(tensor.shape)} is outside the sizes that the plan was compiled for")
            context.set_tensor_address(name, held[name].data_ptr())
        outputs = {}
        for name in self._outputs:
            shape, dtype = tuple(context.get_tensor_shape(name)), _DTYPES[engine.get_tensor_dtype(name)]
            outputs[name] = torch.empty(shape, dtype=dtype, device="cuda")
            context.set_tensor_address(name, outputs[name].data_ptr())
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise RuntimeError("TensorRT-RTX did not execute the plan; its log says why")
        self._stream.synchronize()
        return outputs

    def save_kernels(self) -> None:
        """Keep the kernels generated so far for the next start."""
        self._kernels.parent.mkdir(parents=True, exist_ok=True)
        partial = self._kernels.with_suffix(".partial")
        partial.write_bytes(bytes(self._cache.serialize()))
        partial.replace(self._kernels)
