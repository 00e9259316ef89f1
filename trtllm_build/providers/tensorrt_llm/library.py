"""The compiled fused experts, called through ctypes (``csrc/binding.cu``)."""

from __future__ import annotations

import ctypes
import time
import weakref
from ctypes import c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from nemo_diffgemma.errors import FieldError
from trtllm_build.providers.tensorrt_llm.layout import Packed, quantise

# of the first product and of the second, an index into the library's list of tile and cluster shapes
Tactic = tuple[int, int]
_RUNS = 20


class _Shape(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in ("tokens", "hidden", "width", "experts", "top_k")]


class _Call(ctypes.Structure):
    _fields_ = [
        ("shape", _Shape),
        *((name, c_void_p) for name in ("output", "input", "ids", "weights", "up_gate", "down", "up_gate_scale")),
        *((name, c_void_p) for name in ("quantise", "down_scale", "workspace", "stream")),
        ("tactic", c_int64 * 2),
    ]


class FusedExperts:
    """The library on the current CUDA device; not to be called by two threads at once.

    Args:
        library: The file that ``build`` wrote.

    Raises:
        FieldError: The file cannot be loaded, or the device is not a Hopper GPU.
    """

    def __init__(self, library: Path):
        fix = "python -m trtllm_build.providers.tensorrt_llm build"
        try:
            self._library = ctypes.CDLL(str(library))
        except OSError as error:
            raise FieldError(
                field="library", value=str(library), allowed="the library of this version", fix=f"{fix} ({error})"
            ) from None
        capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
        if capability != (9, 0):
            raise FieldError(
                field="device",
                value=capability,
                allowed="compute capability (9, 0)",
                fix="use another provider of experts",
            )
        self._library.experts_error.restype = ctypes.c_char_p
        for name in ("experts_open", "experts_tactics", "experts_workspace_bytes", "experts_run"):
            getattr(self._library, name).restype = c_int64
        self._handle = c_void_p()
        self._checked("experts_open", ctypes.byref(self._handle))
        weakref.finalize(self, self._library.experts_close, self._handle)
        self.tactics = self._checked("experts_tactics", self._handle)

    def __call__(self, packed: Packed, x: Tensor, weights: Tensor, ids: Tensor, tactic: Tactic = (0, 0)) -> Tensor:
        """Weighted sum of each token's experts, queued on the current stream; may be captured in a CUDA graph.

        Args:
            packed: The experts, on this device.
            x: ``[tokens, hidden]`` unquantised, or e4m3 already divided by ``packed.input_scale``.
            weights: ``[tokens, top_k]`` float32.
            ids: ``[tokens, top_k]`` int32 expert ids.
            tactic: As :meth:`fastest` found it.

        Returns:
            ``[tokens, hidden]`` bf16.
        """
        inputs = x if x.dtype == packed.down.dtype else quantise(x, packed.input_scale)
        experts, hidden, width = packed.down.shape
        shape = _Shape(len(x), hidden, width, experts, ids.shape[1])
        size = self._checked("experts_workspace_bytes", self._handle, ctypes.byref(shape))
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
        output = torch.empty(x.shape, dtype=torch.bfloat16, device=x.device)
        tensors = [output, inputs.contiguous(), ids.int().contiguous(), weights.float().contiguous(), packed.up_gate]
        tensors += [packed.down, packed.up_gate_scale, packed.quantise, packed.down_scale, workspace]
        stream = torch.cuda.current_stream().cuda_stream
        call = _Call(shape, *(t.data_ptr() for t in tensors), stream, (c_int64 * 2)(*tactic))
        self._checked("experts_run", self._handle, ctypes.byref(call))
        return output

    def fastest(self, packed: Packed, x: Tensor, weights: Tensor, ids: Tensor) -> Tactic:
        """The quickest tile and cluster shape of either product, measured with these very tensors."""
        best = [0, 0]
        for product in (0, 1):
            times = {}
            for index in range(self.tactics):
                tactic = (index, best[1]) if product == 0 else (best[0], index)
                try:
                    times[index] = self.milliseconds(packed, x, weights, ids, tactic)
                except RuntimeError:  # a shape that this device or this size does not allow
                    continue
            best[product] = min(times, key=lambda index: times[index])
        return best[0], best[1]

    def milliseconds(self, packed: Packed, x: Tensor, weights: Tensor, ids: Tensor, tactic: Tactic) -> float:
        """Mean time of a call, host and device together."""
        self(packed, x, weights, ids, tactic)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(_RUNS):
            self(packed, x, weights, ids, tactic)
        torch.cuda.synchronize()
        return (time.perf_counter() - started) * 1000 / _RUNS

    def _checked(self, name: str, *arguments: object) -> int:
        result: int = getattr(self._library, name)(*arguments)
        if result < 0:
            raise RuntimeError(f"{name}: {self._library.experts_error().decode().splitlines()[0]}")
        return result
