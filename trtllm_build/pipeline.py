"""Checkpoint in, bundle out: import -> quantize -> compile -> verify -> bundle, one function a stage.

Work goes on in a hidden folder beside ``<out>`` (:mod:`trtllm_build.out`); a build that was stopped takes up the files
it finished, and ``<out>`` changes only by the last rename.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import Checkpoint, text_tensors
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.files import file_sha256, write_json, write_text
from nemo_diffgemma.questions import read_questions
from nemo_diffgemma.tokenizer import Tokenizer
from trtllm_build.backends import KEEP_FORMS, READ_LABELS
from trtllm_build.bundle import Bundle, write_manifest
from trtllm_build.bundle_files import LOG
from trtllm_build.compilers import Outcome, compiler
from trtllm_build.gates.questions import CALIBRATION_QUESTIONS, check_questions
from trtllm_build.hardware import has_gpu
from trtllm_build.limits import Limits
from trtllm_build.manifest import CONTRACT, MANIFEST
from trtllm_build.network.cache import cache_bytes
from trtllm_build.out import check_place, check_space, folder_bytes, one_build_at_a_time, put, working
from trtllm_build.plan import Plan
from trtllm_build.quantization.recipe import Recipe
from trtllm_build.quantization.unified import unified_bytes, write_unified
from trtllm_build.quantization.weight_files import (
    ClassCount,
    check_quantized,
    compare_weights,
    count_parameters,
    count_shapes,
    write_weights,
)
from trtllm_build.sampling import SamplerConfig
from trtllm_build.spec import INPUT_SCALES, EngineSpec, input_scales, on_cpu

Report = Callable[[str], None]
UNIFIED = "unified"  # folder below the build's
Manifest = dict[str, Any]
_LITTLE = 2**26  # bytes of compiled pieces, descriptions, logs
_FEW = 2**30  # parameters of a model whose layers are all read back


def build(plan: Plan, report: Report) -> Manifest:
    """Run every stage; returns the manifest. Waits for another build of the same bundle.

    Args:
        plan: what to build.
        report: called with a line for every step done.

    Raises:
        FieldError: when the checkpoint is not whole, ``out`` is not this product's to replace or has no room, or the
            engine is not at parity with transformers.
        OSError: when a file cannot be read or written; what is finished is taken up by the next build.
    """
    sources = [p for p in (plan.checkpoint, plan.calibration, plan.held_out) if p is not None]
    for folder in (plan.out, *([plan.unified_out] if plan.unified else [])):
        check_place(folder, sources)
    with one_build_at_a_time(plan.out, report):
        return _build(plan, report)


def _build(plan: Plan, report: Report) -> Manifest:
    start = time.perf_counter()
    log: list[str] = []

    def note(line: str) -> None:
        log.append(line)
        report(line)

    checkpoint = None if plan.checkpoint is None else import_checkpoint(plan.checkpoint, note)
    if checkpoint is not None:
        plan = replace(plan, longest_question=check_questions(plan, checkpoint))
    generation(plan.arch, checkpoint)
    if not (plan.out / MANIFEST).is_file():  # before the checkpoint is hashed, unless there may be nothing to do
        check_space(plan.out, needed_bytes(plan, checkpoint))
    inputs = build_inputs(plan, checkpoint)
    there = _same_bundle(plan.out, inputs)
    # built where its GPU is not, and now it is here: what remained is to be run
    if there is not None and not (there["remaining"] and plan.sm and has_gpu(plan.sm)):
        note(f"bundle   {plan.out} is up to date: nothing to do")
        return there
    check_space(plan.out, needed_bytes(plan, checkpoint))
    with working(plan.out, json.dumps(inputs, sort_keys=True), note) as work:
        if there is not None and (plan.out / "weights").is_dir() and not (work / "weights").exists():
            shutil.copytree(plan.out / "weights", work / "weights", copy_function=os.link)
        # the others' files hold weights of their own making
        own = plan.backend in ("torch_cpu", "cuda") and checkpoint is not None
        weights = (
            quantize(checkpoint, plan.recipe, work / "weights", note)
            if own and checkpoint
            else describe_shapes(plan.arch, plan.recipe, note)
        )
        if plan.memory_gb_per_second is not None:
            total = sum(c["bytes"] for c in weights["classes"])
            floor = 1000 * total / 1e9 / plan.memory_gb_per_second
            note(
                f"quantize a denoising step reads {_size(total)} of weights: "
                f"{floor:.3g} ms at the {plan.memory_gb_per_second:,} GB/s of {plan.gpu}'s memory"
            )
        describe_model(plan.arch, checkpoint, work)
        if plan.calibration is not None and checkpoint is not None and not (work / INPUT_SCALES).is_file():
            spec = EngineSpec(work, on_cpu(plan.limits, plan.longest_question))
            write_json(work / INPUT_SCALES, find_scales(checkpoint, spec, plan.calibration, note))
        unified = work / UNIFIED
        if plan.unified and checkpoint is not None and not unified.is_dir():
            scales = input_scales(work) if plan.recipe.format == "nvfp4" else None
            write_unified(checkpoint, unified, lambda line: note(f"unified  {line}"), plan.recipe.quantize, scales)
        outcome = compiler(plan.backend)(plan, checkpoint, work, note)
        if unified.is_dir():
            put(unified, plan.unified_out, note)
            size = _size(folder_bytes(plan.unified_out))
            note(f"unified  {plan.unified_out}: Hugging Face layout with hf_quant_config.json, {size}")
        write_text(work / LOG, "\n".join(log) + "\n")
        seconds = round(time.perf_counter() - start, 1)
        measured = {"weights": weights, "build_seconds": seconds}
        manifest = write_manifest(work, describe_build(plan, inputs, outcome, measured))
        put(work, plan.out, note)
        note(f"bundle   {plan.out}: {_size(folder_bytes(plan.out))}, manifest {manifest['manifest_hash'][:12]}")
        return manifest


def needed_bytes(plan: Plan, checkpoint: Checkpoint | None) -> int:
    """What a build writes, by shapes: weights, graphs that hold them, the quantised checkpoint; and a little more."""
    if checkpoint is None:
        return _LITTLE
    weights = sum(c.bytes for c in count_shapes(plan.arch, plan.recipe))
    copies = {"tensorrt_rtx": 2, "edge_llm": 2}.get(plan.backend, 1)  # a graph, and what is compiled of it
    unified = unified_bytes(checkpoint, plan.recipe.quantize, plan.recipe.format) if plan.unified else 0
    return copies * weights + unified + sum(p.stat().st_size for p in checkpoint.tokenizer_files) + _LITTLE


def import_checkpoint(directory: Path, note: Report) -> Checkpoint:
    """Open the checkpoint: every tensor it should have, no other, each of its shape."""
    checkpoint = Checkpoint(directory)
    if checkpoint.tokenizer_files:
        Tokenizer(directory)  # one that cannot be loaded would be found when the engine is
    count = sum(torch.Size(s).numel() for s in checkpoint.text_shapes.values())
    note(f"import   {directory}: {len(checkpoint.text_shapes)} text tensors, {count:,} parameters")
    if checkpoint.passed_over:
        count = len(checkpoint.passed_over)
        note(f"import   {count} tensors of its files stay behind: its index does not have them there")
    if checkpoint.vision_shapes:
        note(f"import   {len(checkpoint.vision_shapes)} vision tensors stay behind: this engine reads text")
    return checkpoint


def quantize(checkpoint: Checkpoint, recipe: Recipe, folder: Path, note: Report) -> dict[str, Any]:
    """Write the weights at the recipe's precision, a file per layer, and show that they hold what it says.

    Returns:
        What they hold by class, and how far each quantised class is from the checkpoint.
    """
    write_weights(checkpoint, recipe, folder, lambda line: note(f"quantize {recipe.name} {line}"))
    counts = count_parameters(folder)
    check_quantized(counts, recipe)
    _note_counts(counts, note)
    layers = sampled_layers(checkpoint.arch)
    errors = compare_weights(checkpoint, folder, layers) if recipe.format else []
    for e in errors:
        note(
            f"quantize {e.name:<12} {e.tensors} tensors of layers {_listed(layers)} read back: error {e.relative:.2%}, "
            f"at most {e.worst:.2f} of the format's own"
        )
    return {"classes": [asdict(c) for c in counts], "errors": [asdict(e) for e in errors], "error_layers": layers}


def describe_shapes(arch: Architecture, recipe: Recipe, note: Report) -> dict[str, Any]:
    """What weights take by class, by their shapes: for those that are made elsewhere."""
    counts = count_shapes(arch, recipe)
    _note_counts(counts, note)
    return {"classes": [asdict(c) for c in counts]}


def _note_counts(counts: Sequence[ClassCount], note: Report) -> None:
    for c in counts:
        note(f"quantize {c.name:<12} {c.parameters:>14,} parameters in {c.dtype:<13} {_size(c.bytes):>9}")


def find_scales(checkpoint: Checkpoint, spec: EngineSpec, calibration: Path, note: Report) -> dict[str, float]:
    """Scales of what every product reads, from conversations that the unquantised model answers.

    Raises:
        FieldError: when the model does not fit into this machine's memory.
    """
    questions = read_questions(calibration, CALIBRATION_QUESTIONS, "calibration")
    from trtllm_build.gates.calibrate import calibrate

    scales = calibrate(checkpoint, spec, questions)
    note(f"quantize {len(scales)} input scales found with {len(questions)} conversations of {calibration}")
    return scales


def generation(arch: Architecture, checkpoint: Checkpoint | None) -> tuple[tuple[int, ...], SamplerConfig]:
    """Ends of sequence and sampler defaults, of ``generation_config.json`` where it says any.

    Raises:
        FieldError: when it says something else.
    """
    values = {} if checkpoint is None else checkpoint.generation_config
    end = values.get("eos_token_id")
    ends = arch.eos_token_ids if end is None else tuple(end) if isinstance(end, list) else (end,)
    last, fix = arch.vocab_size - 1, "correct generation_config.json"
    good = all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i <= last for i in ends)
    require(
        good,
        field="generation_config.json:eos_token_id",
        value=end,
        allowed=f"a token id from 0 to {last}, or a list of them",
        fix=fix,
    )
    try:
        return ends, SamplerConfig.from_generation_config(values)
    except FieldError as error:
        raise FieldError(
            field=f"generation_config.json:{error.field}", value=error.value, allowed=error.allowed, fix=fix
        ) from None


def describe_model(arch: Architecture, checkpoint: Checkpoint | None, work: Path) -> None:
    """Write what the runtime needs beside the weights: shapes, sampler defaults, tokenizer."""
    ends, sampler = generation(arch, checkpoint)
    write_json(work / "architecture.json", arch.with_changes(eos_token_ids=ends, vision_config=None).as_dict())
    write_json(work / "sampler.json", asdict(sampler))
    if checkpoint is not None and checkpoint.tokenizer_files:
        (work / "tokenizer").mkdir(exist_ok=True)
        for path in checkpoint.tokenizer_files:
            shutil.copyfile(path, work / "tokenizer" / path.name)


def describe_build(plan: Plan, inputs: dict[str, Any], outcome: Outcome, measured: dict[str, Any]) -> Manifest:
    """What the manifest says beside its files and hashes."""
    return {
        **inputs,
        "hardware": outcome.hardware,
        "runtime": outcome.runtime,
        "verified": outcome.verified,
        "remaining": outcome.remaining,
        "measured": {**outcome.measured, **measured, "calibration": _named(plan.calibration)},
        "keeps_forms": plan.backend in KEEP_FORMS,
        "reads_labels": plan.backend in READ_LABELS,
        "io": outcome.io or _engine_contract(plan.arch, plan.recipe, plan.limits),
        "log": LOG,
    }


def _named(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _engine_contract(arch: Architecture, recipe: Recipe, limits: Limits) -> dict[str, Any]:
    """Inputs of the engine contract, and what a request takes."""
    room = limits.context + limits.canvas
    return {
        "encode": {"slot": [], "token_ids": ["tokens"], "start": []},
        "denoise": {
            "slot": [],
            "canvas_ids": [f"1 to {arch.canvas_length}"],
            "soft_embeddings": ["canvas", arch.hidden_size],
            "temperature": [],
            "draws": ["canvas"],
        },
        "cache_bytes_of_a_slot": cache_bytes(arch, getattr(torch, recipe.dtype), room),
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
        "held_out": None if plan.held_out is None else file_sha256(plan.held_out),
        "largest_loss": plan.largest_loss,
        "checkpoint": source,
        "toolchain": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
    }


def _same_bundle(out: Path, inputs: dict[str, Any]) -> Manifest | None:
    """The manifest of a bundle in place that is of the same inputs, and whole."""
    try:
        stated = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        if any(stated.get(k) != v for k, v in inputs.items()):
            return None
        return Bundle.open(out, elsewhere=True).manifest
    except (
        OSError,
        ValueError,
        AttributeError,
        RecursionError,
    ):  # none, or a damaged one (a FieldError): it is built again
        return None


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


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
