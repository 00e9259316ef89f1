"""ONNX in, TensorRT-RTX plan out, for a GPU that need not be here."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt
import torch

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.errors import FieldError, require
from trtllm_build.lowering.lower import inputs
from trtllm_build.network.cache import PREFILL_CHUNK

SMS = (120, 121)  # that this project compiles for; TensorRT-RTX knows 75, 80, 86 and 89 too
Range = tuple[int, int, int]
"""Least, most usual and largest size of a dimension."""


@dataclass(frozen=True)
class EngineFile:
    """What a build of a plan took and gave.

    Args:
        sm: compute capability it is for, 121 for 12.1.
        machine: kind of CPU that it was built on: NVIDIA says that plans go from Linux to Windows, and nothing of other
            CPUs, such as DGX Spark's aarch64.
        tensorrt_rtx: version that built it, and that has to load it.
        bytes: of the plan.
        weights_bytes: that it holds on the device: one copy for both phases.
        activation_bytes: that it works in on the device, at the largest sizes.
        seconds: of parsing and building.
        peak_bytes: resident memory of the process at its highest, over what it was before.
        ranges: sizes of the dimensions that a call decides.
    """

    sm: int
    machine: str
    tensorrt_rtx: str
    bytes: int
    weights_bytes: int
    activation_bytes: int
    seconds: float
    peak_bytes: int
    ranges: dict[str, Range]


def ranges(arch: Architecture, context: int) -> dict[str, Range]:
    """Sizes that the plan takes: a canvas is what is usual.

    Args:
        arch: the network's shapes.
        context: most tokens of a sequence.
    """
    canvas, kept = arch.canvas_length, arch.sliding_window - 1
    room = context + canvas  # the last canvas may reach past the context
    return {
        "tokens": (1, canvas, max(canvas, PREFILL_CHUNK)),
        "rows": (1, canvas, canvas),
        "sets": (1, 1, canvas),
        "held_sliding": (1, kept, kept),
        "held_global": (1, min(2048, room), room),
    }


def compile_engine_file(
    onnx_path: Path, arch: Architecture, sm: int, context: int, out: Path, progress: Callable[[str], None]
) -> EngineFile:
    """Write the plan to ``out`` and everything TensorRT-RTX said of it to ``<out>.log``.

    Args:
        onnx_path: of the lowered graph, its weights beside it.
        arch: the network's shapes.
        sm: compute capability to compile for.
        context: most tokens of a sequence.
        out: of the plan.
        progress: called with a line when it is done.

    Raises:
        FieldError: when TensorRT-RTX does not take the graph, with its own words.
    """
    require(
        sm in SMS, field="gpu.sm", value=sm, allowed=" or ".join(map(str, SMS)), fix="pass gpu=dgx_spark or gpu=rtx5090"
    )
    sizes = ranges(arch, context)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    start = time.perf_counter()
    with Path(f"{out}.log").open("w") as file:
        log = _Log(file.write)
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(onnx_path)):
            raise _refused("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)), out)
        config = _config(builder, arch, sm, sizes, {i.name for i in _network_inputs(network)})
        with _Writer(out) as writer:
            done = builder.build_serialized_network_to_stream(network, config, writer)
    if not done:
        out.unlink()
        raise _refused("; ".join(log.errors) or "no reason given", out)
    seconds = round(time.perf_counter() - start, 1)
    peak = max(0, _resident("VmHWM") - before)
    weights, activation = (_stated(f"{out}.log", f"Total {what} Memory") for what in ("Weights", "Activation"))
    result = EngineFile(
        sm, platform.machine(), trt.__version__, out.stat().st_size, weights, activation, seconds, peak, sizes
    )
    progress(f"SM {sm}: {result.bytes / 1e6:,.1f} MB in {seconds} s, {peak / 1e9:.2f} GB of memory at most")
    return result


def _config(builder: Any, arch: Architecture, sm: int, sizes: Mapping[str, Range], names: set[str]) -> Any:
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), 0)
    profile = builder.create_optimization_profile()
    for port in inputs(arch, torch.bfloat16):
        if port.name in names and any(isinstance(d, str) for d in port.shape):
            bounds = [tuple(sizes[d][i] if isinstance(d, str) else d for d in port.shape) for i in range(3)]
            profile.set_shape(port.name, *bounds)
    config.add_optimization_profile(profile)
    return config


def _network_inputs(network: Any) -> list[Any]:
    return [network.get_input(i) for i in range(network.num_inputs)]


def _refused(reason: str, out: Path) -> FieldError:
    return FieldError(field="tensorrt_rtx", value=reason, allowed="a graph that it compiles", fix=f"see {out}.log")


def _stated(log: str, what: str) -> int:
    """Bytes as TensorRT-RTX states them in its log."""
    found = re.findall(rf"{what}: (\d+) bytes", Path(log).read_text())
    return int(found[-1])


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


class _Log(trt.ILogger):  # type: ignore[misc]
    """Keeps what is said: all of it in a file, errors to tell the user."""

    def __init__(self, write: Callable[[str], object]):
        super().__init__()
        self.errors: list[str] = []
        self._write = write

    def log(self, severity: Any, msg: str) -> None:
        """Called by TensorRT-RTX, from several threads."""
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            self.errors.append(msg)
        if severity != trt.ILogger.VERBOSE:
            self._write(f"{severity.name.lower()}: {msg}\n")


class _Writer(trt.IStreamWriter):  # type: ignore[misc]
    """Takes the plan as it is made: in memory it would be there twice."""

    def __init__(self, path: Path):
        super().__init__()
        self._file = path.open("wb")

    def write(self, data: bytes) -> int:
        """Called by TensorRT-RTX."""
        return self._file.write(data)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
