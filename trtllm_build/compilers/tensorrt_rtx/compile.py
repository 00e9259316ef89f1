"""The engine for DGX Spark and RTX GPUs: one ONNX graph for both phases, compiled by TensorRT-RTX without the GPU.

The graph is checked before it is compiled: what it stores against the checkpoint, byte for byte, and what ONNX Runtime
makes of it against the torch engine. The plan then holds the weights, once; the graph does not stay.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.errors import require
from nemo_diffgemma.questions import read_questions
from trtllm_build.backends.torch_cpu import TorchCpu
from trtllm_build.compilers import Note, Outcome
from trtllm_build.gates.quality import QUESTIONS, answer, checked_loss, not_measured
from trtllm_build.gates.reference import Precision
from trtllm_build.gates.verify import fits_in_memory, verify
from trtllm_build.network.pieces import eager_pieces
from trtllm_build.network.weights import HEAD
from trtllm_build.plan import Plan
from trtllm_build.quantization.activations import rounding_by_product
from trtllm_build.quantization.recipe import Recipe, named_recipe
from trtllm_build.runtime.engine import Engine
from trtllm_build.spec import EngineSpec, input_scales, on_cpu

GRAPH = "graph"  # folder below the build's, gone when the plan is written
_PACKAGES = {"onnx": "export", "onnxruntime": "export", "tensorrt_rtx": "tensorrt-rtx"}


def compile_engine(plan: Plan, checkpoint: Checkpoint | None, work: Path, note: Note) -> Outcome:
    """See :class:`trtllm_build.compilers.Compiler`."""
    assert plan.sm is not None
    assert checkpoint is not None, "random weights are for the cuda backend"
    for package, extra in _PACKAGES.items():
        found = importlib.util.find_spec(package) is not None
        fix = f"run `pip install 'diffgemma[{extra}]'`, or `make setup`"
        require(
            found, field=f"package {package}", value=None, allowed=f"installed, to build for gpu={plan.gpu}", fix=fix
        )
    from trtllm_build.backends.tensorrt_rtx.load import ENGINE_FILE
    from trtllm_build.compilers.tensorrt_rtx.engine_file import compile_engine_file

    graph, agreement = _graph(checkpoint, plan.recipe, work, note)
    parity = _parity(checkpoint, plan.recipe, graph, work, note)
    longest = plan.limits.context + plan.limits.canvas
    compiled = compile_engine_file(
        graph, plan.arch, plan.sm, longest, work / ENGINE_FILE, lambda line: note(f"compile  {line}")
    )
    spec = EngineSpec(work, on_cpu(plan.limits, plan.longest_question))
    quality = _quality(checkpoint, plan.recipe, spec, plan.held_out, plan.largest_loss, note)
    shutil.rmtree(work / GRAPH)
    hardware = {"kind": "cuda", "name": plan.gpu.upper(), "sm": plan.sm}
    note(f"compile  what remains: `diffgemma-serve --engine {plan.out}` on the {plan.gpu}; nothing ran on the device")
    return Outcome(
        hardware,
        {"tensorrt_rtx": compiled.tensorrt_rtx},
        "compiled",
        {"graph": agreement, "parity": parity, "plan": asdict(compiled), "quality": quality, "on": "CPU"},
        [f"run it on the device: `diffgemma-serve --engine {plan.out}`"],
        io=_ports(plan.arch, plan.recipe),
    )


def _graph(checkpoint: Checkpoint, recipe: Recipe, work: Path, note: Note) -> tuple[Path, dict[str, Any]]:
    """Lower the checkpoint and check the graph; its path and what was found."""
    import onnx

    from trtllm_build.compilers.tensorrt_rtx.check import check_graph, check_weights
    from trtllm_build.gates.calibrate import WEIGHTED
    from trtllm_build.lowering.initializers import reader
    from trtllm_build.lowering.lower import lower

    shutil.rmtree(work / GRAPH, ignore_errors=True)
    (work / GRAPH).mkdir()
    path, arch, read = work / GRAPH / "model.onnx", checkpoint.arch, reader(checkpoint)
    # in the graph the router's weights come before the experts' second product
    found_scales = input_scales(work)
    weighted = {n.replace(WEIGHTED, "experts_down"): s for n, s in found_scales.items() if WEIGHTED in n}
    scales = found_scales | weighted
    lower(arch, read, recipe, scales, path, lambda line: note(f"lower    {line}"))
    onnx.checker.check_model(str(path), full_check=True)
    count = check_weights(path, arch, read, recipe)
    size = sum(p.stat().st_size for p in (work / GRAPH).iterdir())
    note(f"lower    {size / 1e6:,.1f} MB of ONNX; {count} tensors of its layers are the checkpoint's, byte for byte")
    found: dict[str, Any] = {"bytes": size, "tensors_compared": count, "against_torch": None}
    if fits_in_memory(checkpoint):
        agreement = check_graph(path, arch, read, recipe, lambda line: note(f"verify   {line}"))
        found["against_torch"] = asdict(agreement)
    else:
        note("verify   graph not run on the CPU: its float32 copy does not fit into this machine's memory")
    return path, found


def _parity(checkpoint: Checkpoint, recipe: Recipe, graph: Path, work: Path, note: Note) -> dict[str, float] | None:
    """What the graph computes, rounding as its GPU will, against transformers."""
    from trtllm_build.compilers.tensorrt_rtx.check import simulated
    from trtllm_build.lowering.initializers import PRODUCT_OF, reader, widened

    if not fits_in_memory(checkpoint):
        return None
    arch = checkpoint.arch
    weight = widened(arch, reader(checkpoint), recipe)
    rounding = rounding_by_product(recipe, input_scales(work), PRODUCT_OF)
    precision = Precision(getattr(torch, recipe.dtype), weight, rounding)
    table = weight(HEAD, "embedding")
    parity = verify(
        checkpoint,
        simulated(graph, arch, table),
        precision,
        lambda: simulated(graph, arch, table, rounding=False),
    )
    note(f"verify   {parity.cases} cases against transformers, {recipe.name} computed on the CPU: {parity}")
    return parity.as_dict()


def _quality(
    checkpoint: Checkpoint, recipe: Recipe, spec: EngineSpec, held_out: Path | None, largest_loss: float, note: Note
) -> dict[str, Any] | None:
    """Exact match with the recipe's weights, and float32's; activations are not rounded in this."""
    from trtllm_build.lowering.initializers import reader, widened_weights

    if held_out is None or spec.tokenizer_directory is None:
        note(not_measured(held_out))
        return None
    if not fits_in_memory(checkpoint):
        note("quality  not measured: the model in float32 does not fit into this machine's memory")
        return None
    questions = read_questions(held_out, QUESTIONS, "held_out")
    found = {}
    for each in (named_recipe("fp32"), recipe):
        weights = widened_weights(spec.arch, reader(checkpoint), each)
        engine = Engine(spec, TorchCpu(spec.arch, weights, eager_pieces(spec.arch)), os.cpu_count())
        found[each.name] = answer(engine, questions)
        engine.close()
        note(
            f"quality  weights in {each.name}: {found[each.name].exact_match:.3f} of {len(questions)} answers "
            f"exact, {found[each.name].steps_per_canvas:.2f} steps per canvas"
        )
    loss = checked_loss(found["fp32"], found[recipe.name], largest_loss)
    return {
        "held_out": str(held_out),
        "questions": len(questions),
        "loss": loss,
        **{name: q.as_dict() for name, q in found.items()},
    }


def _ports(arch: Architecture, recipe: Recipe) -> dict[str, Any]:
    """Inputs and outputs of the graph, as the manifest has them."""
    from trtllm_build.lowering.lower import inputs, outputs

    dtype = getattr(torch, recipe.dtype)
    sides = {"inputs": inputs(arch, dtype), "outputs": outputs(arch, dtype)}
    return {
        side: {p.name: {"dtype": str(p.dtype).removeprefix("torch."), "shape": list(p.shape)} for p in ports}
        for side, ports in sides.items()
    }
