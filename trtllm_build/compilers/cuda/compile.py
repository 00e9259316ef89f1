"""The engine for one NVIDIA GPU: judged on the CPU wherever it is built, tuned and executed where that GPU is."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.errors import require
from nemo_diffgemma.questions import read_questions
from trtllm_build.backends.cuda.backend import Cuda
from trtllm_build.backends.cuda.device_weights import DeviceWeights, from_bundle, from_checkpoint, load_weights, widened
from trtllm_build.backends.cuda.fused import TACTIC, Tuning, built_library, provider, simulated
from trtllm_build.backends.cuda.network import DeviceNetwork
from trtllm_build.backends.cuda.ops import TENSORRT_LLM, Ops, Provider, reference_ops, triton_ops
from trtllm_build.compilers import Note, Outcome
from trtllm_build.compilers.cuda.probes import probes
from trtllm_build.compilers.cuda.tune import time_run, tune
from trtllm_build.gates.quality import QUESTIONS, Quality, answer, checked_loss, not_measured
from trtllm_build.gates.reference import Precision
from trtllm_build.gates.verify import FLOOR, RATIO, Parity, compare, fits_in_memory, verify
from trtllm_build.hardware import has_gpu
from trtllm_build.limits import Limits
from trtllm_build.plan import Plan
from trtllm_build.providers.tensorrt_llm.build import LIBRARY
from trtllm_build.quantization.recipe import Recipe, named_recipe
from trtllm_build.runtime.engine import Engine
from trtllm_build.spec import EngineSpec, input_scales, on_cpu

_CPU = torch.device("cpu")
# Of an engine's logits to those of plain torch, where transformers' own error is not known: of trained models.
_ON_DEVICE = {"bf16": 0.1, "fp8": 0.5, "fp8_static": 0.5}


def compile_engine(plan: Plan, checkpoint: Checkpoint | None, work: Path, note: Note) -> Outcome:
    """See :class:`trtllm_build.compilers.Compiler`."""
    assert plan.sm is not None
    spec = EngineSpec(work, plan.limits, random_precision=plan.recipe.name if checkpoint is None else None)
    hardware = {"kind": "cuda", "name": plan.gpu.upper(), "sm": plan.sm}
    measured = {}
    if checkpoint is not None:
        on_this_cpu = EngineSpec(work, on_cpu(plan.limits, plan.longest_question))
        measured = simulate(checkpoint, plan.recipe, on_this_cpu, plan.held_out, plan.largest_loss, note)
    if not has_gpu(plan.sm):
        source = "WEIGHTS=random" if checkpoint is None else f"CHECKPOINT={plan.checkpoint}"
        files = {"CALIBRATION": plan.calibration, "HELD_OUT": plan.held_out}
        named = "".join(f" {name}={path}" for name, path in files.items() if path is not None)
        command = f"make engine GPU={plan.gpu} {source} PRECISION={plan.recipe.name}{named}"
        note(f"compile  no {hardware['name']} (SM {plan.sm}) here: kernels are not measured, nothing ran on the device")
        note(f"compile  what remains: on a machine with that GPU run `{command}` (tunes, captures, verifies)")
        remaining = ["choose kernel providers", "capture CUDA graphs", "compare with the reference on the device"]
        return Outcome(hardware, {}, "none", measured, [f"{what}: `{command}`" for what in remaining])
    parity = measured.get("parity") or {}
    runtime, on_device = execute(
        spec, plan.recipe.name, torch.device("cuda"), note, parity.get("reference_mean_relative")
    )
    return Outcome(hardware, runtime, "executed", measured | on_device)


def simulate(
    checkpoint: Checkpoint, recipe: Recipe, spec: EngineSpec, held_out: Path | None, largest_loss: float, note: Note
) -> dict[str, Any]:
    """What the engine computes, computed on the CPU with the bundle's own weights and scales: parity and quality.

    Raises:
        FieldError: when parity or quality is out of bounds.
    """
    if not fits_in_memory(checkpoint):
        note("verify   whole model not run on the CPU: its float32 copy does not fit into this machine's memory")
        return {"parity": None, "quality": None}
    weights = from_bundle(spec, _CPU)
    precision = Precision.of_recipe(checkpoint, recipe, input_scales(spec.directory))

    def plain() -> Cuda:
        return Cuda(spec.arch, widened(weights), reference_ops(), spec.limits)

    parity = verify(checkpoint, _simulated(spec, weights), precision, plain)
    note(f"verify   {parity.cases} cases against transformers, {recipe.name} computed on the CPU: {parity}")
    quality = None
    if held_out is None or spec.tokenizer_directory is None:
        note(not_measured(held_out))
    else:
        quality = _quality(checkpoint, recipe, spec, weights, held_out, largest_loss, note)
    return {"parity": parity.as_dict(), "quality": quality, "on": "CPU"}


def _quality(
    checkpoint: Checkpoint,
    recipe: Recipe,
    spec: EngineSpec,
    weights: DeviceWeights,
    held_out: Path,
    largest_loss: float,
    note: Note,
) -> dict[str, Any]:
    questions = read_questions(held_out, QUESTIONS, "held_out")
    found: dict[str, Quality] = {}
    for name in dict.fromkeys(("fp32", "bf16", recipe.name)):
        own = name == recipe.name
        parts = weights if own else from_checkpoint(checkpoint, named_recipe(name), _CPU)
        engine = Engine(spec, _simulated(spec, parts), os.cpu_count())
        found[name] = answer(engine, questions)
        engine.close()
        note(
            f"quality  {name}: {found[name].exact_match:.3f} of {len(questions)} answers exact, "
            f"{found[name].steps_per_canvas:.2f} steps per canvas"
        )
    loss = checked_loss(found["fp32"], found[recipe.name], largest_loss)
    figures = {name: quality.as_dict() for name, quality in found.items()}
    asked = {"held_out": str(held_out), "questions": len(questions)}
    return {**asked, **figures, "loss": loss, "largest_loss": largest_loss}


def _simulated(spec: EngineSpec, weights: DeviceWeights) -> Cuda:
    scales = input_scales(spec.directory) if weights.layers[0].quantized else {}
    ops = simulated(reference_ops(), weights, scales) if scales else reference_ops()
    return Cuda(spec.arch, weights, ops, spec.limits)


def execute(
    spec: EngineSpec, precision: str, device: torch.device, note: Note, lost: float | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Choose providers, compare the whole engine with the same network in plain torch, capture and time its steps.

    Args:
        spec: of the bundle that is being built.
        precision: of its recipe, which decides how far rounding may carry.
        device: the GPU; on the CPU, kernels have to run in Triton's interpreter and nothing is captured.
        note: called with a line for every finding.
        lost: what transformers itself loses at this precision, as a share of the logits' spread; None if not measured.

    Returns:
        How the engine is to execute, and what was measured.

    Raises:
        FieldError: when they differ by more than what rounding explains.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    weights = load_weights(spec, device)
    scales, library = input_scales(spec.directory), built_library()
    extras: dict[str, dict[str, Provider]] = {}
    kernel = None
    if scales and library is None:
        note("tune     tensorrt_llm: not built, see `python -m trtllm_build.providers.tensorrt_llm build --help`")
    elif scales and library is not None:
        kernel = Tuning(library)
        extras = {"experts": {TENSORRT_LLM: provider(kernel, weights, scales)}}
    choices, trials = tune(probes(DeviceNetwork(spec.arch, weights, triton_ops())), note, extras)
    runtime: dict[str, Any] = {"ops": {name: choice.as_dict() for name, choice in choices.items()}}
    if choices["experts"].provider == TENSORRT_LLM and library is not None and kernel is not None:
        shutil.copyfile(library, spec.directory / LIBRARY)
        runtime[TACTIC] = kernel.tactic
    own = {name: choice for name, choice in choices.items() if choice.provider != TENSORRT_LLM}
    ops, judge = triton_ops(own), reference_ops()
    if "experts" not in own:
        fused = extras["experts"][TENSORRT_LLM]
        ops, judge = replace(ops, experts=fused.op), replace(judge, experts=fused.reference)
    parity = on_device_parity(spec, weights, ops, judge, device_bound(precision, lost))
    note(f"verify   on {name}: {parity.as_dict()} against plain torch there")
    steps = step_times(Cuda(spec.arch, weights, ops, spec.limits), device)
    for step in steps:
        note(f"measure  a denoising step of {step['canvases']} canvases without a prompt: {step['ms']} ms")
    figures = {
        "device": name,
        "device_parity": parity.as_dict(),
        "denoising_step": steps,
        "providers": {name: [t.as_dict() for t in trials if t.op == name] for name in choices},
    }
    return runtime, figures


def step_times(engine: Cuda, device: torch.device) -> list[dict[str, Any]]:
    """Milliseconds of a denoising step at every batch that was captured; `benchmarks/gpu.py` measures the rest."""
    found = []
    with torch.inference_mode():
        for batch, call in engine.denoise_calls():
            seconds = min(time_run(call, device) for _ in range(3))
            found.append({"canvases": batch, "ms": float(f"{1000 * seconds:.4g}")})
    return found


def device_bound(precision: str, lost: float | None) -> float:
    """How far two engines of a precision may be from each other on one device, as a share of the logits' spread.

    Args:
        precision: its name.
        lost: by transformers at that precision: each of the two may be as far from float32 as the build allows.
    """
    return max(_ON_DEVICE[precision], 2 * (RATIO * lost + FLOOR) if lost is not None else 0.0)


def on_device_parity(spec: EngineSpec, weights: DeviceWeights, ops: Ops, judge: Ops, bound: float) -> Parity:
    """The engine's logits against those of the same network in plain torch, same device and weights."""
    room = Limits(4096, 1, spec.limits.canvas, spec.limits.vocab_size, 1, None)
    # plain torch looks at values, which a CUDA graph cannot
    found, expected = (Cuda(spec.arch, weights, o, room, graphs=False) for o in (ops, judge))
    parity = compare(expected, found, spec.arch)
    require(
        parity.mean_relative <= bound,
        field="engine:parity on the device",
        value=parity.as_dict(),
        allowed=f"mean_relative at most {bound:.3g}",
        fix="report it with the manifest's providers; no engine was written",
    )
    return parity
