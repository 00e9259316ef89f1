"""Checkpoint in, bundle out: import -> quantize -> compile -> verify -> bundle, one function a stage.

Work goes on in ``<out>.partial``; a build that was stopped takes up the files it finished, and
``<out>`` changes only by the last rename.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import Checkpoint, text_tensors
from nemo_diffgemma.checkpoint_writer import replace_directory
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.files import file_sha256
from nemo_diffgemma.questions import read_questions
from trtllm_build.bundle import (
    CONTRACT,
    INPUT_SCALES,
    LOG,
    MANIFEST,
    Bundle,
    has_gpu,
    input_scales,
    on_cpu,
    write_manifest,
)
from trtllm_build.compilers import Outcome, compiler
from trtllm_build.lock import locked
from trtllm_build.network.cache import cache_bytes
from trtllm_build.plan import Plan
from trtllm_build.quantization.unified import write_unified
from trtllm_build.quantization.weights import (
    ClassCount,
    check_quantized,
    compare_weights,
    count_parameters,
    count_shapes,
    write_weights,
)
from trtllm_build.runtime.request import SamplerConfig

Report = Callable[[str], None]
_INPUTS = "inputs.json"
Manifest = dict[str, Any]
_CALIBRATION = 64  # conversations
_FEW = 2**30  # parameters of a model whose layers are all read back


def build(plan: Plan, report: Report) -> Manifest:
    """Run every stage; returns the manifest. Waits for another build of the same bundle.

    Args:
        plan: what to build.
        report: called with a line for every step done.

    Raises:
        FieldError: when the checkpoint is not whole, or the engine is not at parity with transformers.
    """
    with locked(plan.out, report):
        return _build(plan, report)


def _build(plan: Plan, report: Report) -> Manifest:
    start = time.perf_counter()
    log: list[str] = []

    def note(line: str) -> None:
        log.append(line)
        report(line)

    checkpoint = None if plan.checkpoint is None else import_checkpoint(plan.checkpoint, note)
    inputs = build_inputs(plan, checkpoint)
    if (done := _already_built(plan, inputs)) is not None:
        note(f"bundle   {plan.out} is up to date: nothing to do")
        return done
    work = _work_directory(plan, inputs, note)
    # the others' files hold weights of their own making
    own = plan.backend in ("torch_cpu", "cuda") and checkpoint is not None
    weights = quantize(plan, checkpoint, work, note) if own and checkpoint else describe_shapes(plan, note)
    if plan.memory_gb_per_second is not None:
        total = sum(c["bytes"] for c in weights["classes"])
        floor = 1000 * total / 1e9 / plan.memory_gb_per_second
        note(
            f"quantize a denoising step reads {_size(total)} of weights: "
            f"{floor:.3g} ms at the {plan.memory_gb_per_second:,} GB/s of {plan.gpu}'s memory"
        )
    describe_model(plan, checkpoint, work)
    if plan.calibration is not None and checkpoint is not None and not (work / INPUT_SCALES).is_file():
        _write_json(work / INPUT_SCALES, find_scales(plan, checkpoint, work, note))
    unified = work / "unified"
    if plan.unified and checkpoint is not None and not unified.is_dir():
        scales = input_scales(work) if plan.recipe.format == "nvfp4" else None
        write_unified(checkpoint, unified, lambda line: note(f"unified  {line}"), plan.recipe.quantize, scales)
    outcome = compiler(plan.backend)(plan, checkpoint, work, note)
    if unified.is_dir():
        replace_directory(unified, plan.unified_out)
        size = _size(work_bytes(plan.unified_out))
        note(f"unified  {plan.unified_out}: Hugging Face layout with hf_quant_config.json, {size}")
    (work / _INPUTS).unlink()
    (work / LOG).write_text("\n".join(log) + "\n")
    seconds = round(time.perf_counter() - start, 1)
    manifest = write_bundle(plan, inputs, outcome, {"weights": weights, "build_seconds": seconds}, work)
    note(f"bundle   {plan.out}: {_size(work_bytes(plan.out))}, manifest {manifest['manifest_hash'][:12]}")
    return manifest


def import_checkpoint(directory: Path, note: Report) -> Checkpoint:
    """Open the checkpoint: every tensor it should have, no other, each of its shape."""
    checkpoint = Checkpoint(directory)
    count = sum(torch.Size(s).numel() for s in checkpoint.text_shapes.values())
    note(f"import   {directory}: {len(checkpoint.text_shapes)} text tensors, {count:,} parameters")
    if checkpoint.passed_over:
        count = len(checkpoint.passed_over)
        note(f"import   {count} tensors of its files stay behind: its index does not have them there")
    if checkpoint.vision_shapes:
        note(f"import   {len(checkpoint.vision_shapes)} vision tensors stay behind: this engine reads text")
    return checkpoint


def quantize(plan: Plan, checkpoint: Checkpoint, work: Path, note: Report) -> dict[str, Any]:
    """Write the weights at the plan's precision, a file a layer, and show that they hold what the recipe says.

    Returns:
        What they hold by class, and how far each quantised class is from the checkpoint.
    """
    folder = work / "weights"
    write_weights(checkpoint, plan.recipe, folder, lambda line: note(f"quantize {plan.recipe.name} {line}"))
    counts = count_parameters(folder)
    check_quantized(counts, plan.recipe)
    _note_counts(counts, note)
    layers = sampled_layers(plan.arch)
    errors = compare_weights(checkpoint, folder, layers) if plan.recipe.format else []
    for e in errors:
        note(
            f"quantize {e.name:<12} {e.tensors} tensors of layers {_listed(layers)} read back: error {e.relative:.2%}, "
            f"at most {e.worst:.2f} of the format's own"
        )
    return {"classes": [asdict(c) for c in counts], "errors": [asdict(e) for e in errors], "error_layers": layers}


def describe_shapes(plan: Plan, note: Report) -> dict[str, Any]:
    """What weights take by class, by their shapes: for those that are made elsewhere."""
    counts = count_shapes(plan.arch, plan.recipe)
    _note_counts(counts, note)
    return {"classes": [asdict(c) for c in counts]}


def _note_counts(counts: Sequence[ClassCount], note: Report) -> None:
    for c in counts:
        note(f"quantize {c.name:<12} {c.parameters:>14,} parameters in {c.dtype:<13} {_size(c.bytes):>9}")


def find_scales(plan: Plan, checkpoint: Checkpoint, work: Path, note: Report) -> dict[str, float]:
    """Scales of what every product reads, from conversations that the unquantised model answers.

    Raises:
        FieldError: when the model does not fit into this machine's memory, or has no tokenizer.
    """
    assert plan.calibration is not None
    questions = read_questions(plan.calibration)[:_CALIBRATION]
    fix = "add its tokenizer's files to the checkpoint"
    require(bool(checkpoint.tokenizer_files), "calibration", plan.name, "a model with a tokenizer", fix)
    from trtllm_build.quantization.calibrate import calibrate

    scales = calibrate(checkpoint, Bundle.unfinished(work, on_cpu(plan.limits), {}), questions)
    note(f"quantize {len(scales)} input scales found with {len(questions)} conversations of {plan.calibration}")
    return scales


def describe_model(plan: Plan, checkpoint: Checkpoint | None, work: Path) -> None:
    """Write what the runtime needs beside the weights: shapes, sampler defaults, tokenizer."""
    generation_config = {} if checkpoint is None else checkpoint.generation_config
    end = generation_config.get("eos_token_id")
    ends = plan.arch.eos_token_ids if end is None else tuple(end) if isinstance(end, list) else (end,)
    sampler = SamplerConfig.from_generation_config(generation_config)
    _write_json(work / "architecture.json", plan.arch.with_changes(eos_token_ids=ends, vision_config=None).as_dict())
    _write_json(work / "sampler.json", asdict(sampler))
    if checkpoint is not None and checkpoint.tokenizer_files:
        (work / "tokenizer").mkdir(exist_ok=True)
        for path in checkpoint.tokenizer_files:
            shutil.copyfile(path, work / "tokenizer" / path.name)


def write_bundle(
    plan: Plan, inputs: dict[str, Any], outcome: Outcome, measured: dict[str, Any], work: Path
) -> Manifest:
    """Write the manifest and put the bundle in place."""
    manifest = {
        **inputs,
        "hardware": outcome.hardware,
        "runtime": outcome.runtime,
        "verified": outcome.verified,
        "remaining": outcome.remaining,
        "measured": {**outcome.measured, **measured},
        "io": outcome.io or _engine_contract(plan),
        "log": LOG,
    }
    written = write_manifest(work, manifest)
    replace_directory(work, plan.out)
    return written


def _engine_contract(plan: Plan) -> dict[str, Any]:
    """Inputs of the engine contract, and what a request takes."""
    arch = plan.arch
    room = plan.limits.context + plan.limits.canvas
    return {
        "encode": {"slot": [], "token_ids": ["tokens"], "start": []},
        "denoise": {
            "slot": [],
            "canvas_ids": [f"1 to {arch.canvas_length}"],
            "soft_embeddings": ["canvas", arch.hidden_size],
            "temperature": [],
            "draws": ["canvas"],
        },
        "cache_bytes_of_a_slot": cache_bytes(arch, getattr(torch, plan.recipe.dtype), room),
    }


def build_inputs(plan: Plan, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Everything that decides what is built; equal inputs give an equal bundle."""
    source = {"name": plan.name} | ({"random": True} if checkpoint is None else {"sha256": checkpoint.sha256})
    packages = ("torch", "transformers", "safetensors", "diffgemma")
    return {
        "contract": CONTRACT,
        "gpu": plan.gpu,
        "backend": plan.backend,
        "precision": {"name": plan.recipe.name, **plan.recipe.dtypes},
        "limits": asdict(plan.limits),
        "compile": plan.compile,
        "calibration": None if plan.calibration is None else file_sha256(plan.calibration),
        "largest_loss": plan.largest_loss,
        "checkpoint": source,
        "toolchain": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
    }


def _already_built(plan: Plan, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest in place, when it is whole and of the same inputs."""
    if not (plan.out / MANIFEST).is_file():
        return None
    try:
        manifest = Bundle.open(plan.out, elsewhere=True).manifest
    except FieldError:  # damaged: it is built again
        return None
    same = all(manifest.get(k) == v for k, v in inputs.items())
    # built where its GPU is not, and now it is here: what remained is to be run
    return manifest if same and not (manifest["remaining"] and plan.sm and has_gpu(plan.sm)) else None


def _work_directory(plan: Plan, inputs: dict[str, Any], note: Report) -> Path:
    """``<out>.partial``, kept from a stopped build of the same inputs, else empty."""
    work = plan.out.with_name(plan.out.name + ".partial")
    stamp = json.dumps(inputs, sort_keys=True)
    if (work / _INPUTS).is_file() and (work / _INPUTS).read_text() == stamp:
        note(f"resume   {work}")
    else:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        _reuse_weights(plan, inputs, work)
        (work / _INPUTS).write_text(stamp)
    return work


def _reuse_weights(plan: Plan, inputs: dict[str, Any], work: Path) -> None:
    """Take the weights of a bundle of the same inputs, which is built again for what remained to be run."""
    old = plan.out / MANIFEST
    if old.is_file():
        manifest = json.loads(old.read_text())
        if all(manifest.get(k) == v for k, v in inputs.items()) and (plan.out / "weights").is_dir():
            shutil.copytree(plan.out / "weights", work / "weights", copy_function=os.link)


def sampled_layers(arch: Architecture) -> list[int]:
    """Layers to compare: all of a small model; of a large one the first, the first global and the last."""
    layers = range(arch.num_hidden_layers)
    if sum(torch.Size(s).numel() for s in text_tensors(arch).values()) <= _FEW:
        return list(layers)
    return sorted({0, next(i for i in layers if arch.is_global(i)), layers[-1]})


def _listed(layers: list[int]) -> str:
    """``0 to 5`` or ``0, 5, 29``."""
    together = layers == list(range(layers[0], layers[-1] + 1)) and len(layers) > 1
    return f"{layers[0]} to {layers[-1]}" if together else ", ".join(map(str, layers))


def work_bytes(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
