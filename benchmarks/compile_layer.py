"""What it takes to compile the released shapes for a GPU that is not here: plan, time and memory.

One global layer, and a sliding and a global one, with all 128 experts; and all 30 layers, which with 128 experts each
would not fit a workstation's memory and have 8. Shapes are the released ones otherwise, but for a small vocabulary.

Run: ``python -m benchmarks.compile_layer [precision ...]``
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import console, run, show
from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import text_tensors
from nemo_diffgemma.models import RELEASED, configured
from trtllm_build.compilers.tensorrt_rtx.engine_file import compile_engine_file
from trtllm_build.lowering.initializers import Read
from trtllm_build.lowering.lower import lower, quantized_products
from trtllm_build.network.weights import weight_files
from trtllm_build.quantization.recipe import named_recipe

SM = 121
CONTEXT = 32768
VOCABULARY = 4096
_CASES = {"global layer": (slice(5, 6), 128), "two layers": (slice(4, 6), 128), "30 layers": (slice(0, 30), 8)}


def released(layers: slice, experts: int) -> Architecture:
    """Some layers of the released anatomy; the last of them is global."""
    arch = configured(RELEASED)
    kinds = arch.layer_types[layers]
    return arch.with_changes(
        layer_types=kinds, num_hidden_layers=len(kinds), num_experts=experts, vocab_size=VOCABULARY
    )


def random_reader(arch: Architecture) -> Read:
    """Tensors of the right shapes, bfloat16, that mean nothing."""
    files, shapes = weight_files(arch), text_tensors(arch)
    numbers = torch.randn(2**20 + 1).bfloat16()  # over and over: billions of new ones would take longer than compiling

    def read(file: str, name: str) -> Tensor:
        shape = torch.Size(shapes[files[file][name]])
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        # each from another place: of equal weights TensorRT keeps one
        start = int(torch.randint(len(numbers), ()))
        count = shape.numel()
        repeated = numbers.repeat(-(-(start + count) // len(numbers)))
        return repeated[start : start + count].view(shape).mul_(float(shape[-1]) ** -0.5)

    return read


def measured(case: str, precision: str) -> dict[str, Any]:
    """Lower and compile one case in a process of its own, so that its memory is nobody else's."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_measured, case, precision).result()


def _measured(case: str, precision: str) -> dict[str, Any]:
    arch = released(*_CASES[case])
    recipe = named_recipe(precision)
    scales = dict.fromkeys(quantized_products(arch, recipe), 0.02)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        start = time.perf_counter()
        lower(arch, random_reader(arch), recipe, scales, path, lambda _: None)
        lowered = time.perf_counter() - start
        compiled = compile_engine_file(path, arch, SM, CONTEXT, Path(folder) / "plan", lambda _: None)
        weights = path.with_name(path.name + ".data").stat().st_size
    return {
        "case": case,
        "experts_per_layer": arch.num_experts,
        "ONNX_weights_GB": weights / 1e9,
        "plan_GB": compiled.bytes / 1e9,
        "weights_on_the_device_GB": compiled.weights_bytes / 1e9,
        "activations_on_the_device_GB": compiled.activation_bytes / 1e9,
        "lowering_s": round(lowered, 1),
        "compiling_s": compiled.seconds,
        "peak_memory_of_compiling_GB": compiled.peak_bytes / 1e9,
    }


def main() -> None:
    """Every case at every precision named, or at all."""
    settings = {"sm": SM, "context": CONTEXT, "vocabulary": VOCABULARY}
    for precision in sys.argv[1:] or ["nvfp4", "fp8", "bf16"]:
        rows = []
        for case in _CASES:
            console.print(f"{case}, {precision}", style="dim")
            rows.append(measured(case, precision))
            console.print(json.dumps(rows[-1]), style="dim", markup=False, soft_wrap=True)
        show(f"compile_layer_{precision}", f"TensorRT-RTX plans for SM {SM}, {precision}", rows, **settings)


if __name__ == "__main__":
    run(main)
