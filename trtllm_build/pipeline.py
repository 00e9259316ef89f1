"""Checkpoint in, bundle out: import -> quantize -> compile -> verify -> bundle, one function a stage.

Work goes on in ``<out>.partial``; a build that was stopped takes up the files it finished, and
``<out>`` changes only by the last rename.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nemo_diffgemma.checkpoint import Checkpoint, replace_directory
from nemo_diffgemma.errors import FieldError
from trtllm_build.backends import aot
from trtllm_build.backends.torch_cpu import TorchCpu
from trtllm_build.bundle import CONTRACT, LOG, MANIFEST, PIECES, Bundle, this_machine, write_manifest
from trtllm_build.measure import choose, measure
from trtllm_build.network.cache import cache_bytes
from trtllm_build.network.weights import weight_files
from trtllm_build.plan import Plan
from trtllm_build.runtime.request import SamplerConfig
from trtllm_build.verify import fits_in_memory, verify

Report = Callable[[str], None]
_INPUTS = "inputs.json"
_CLASSES = {
    "experts": ("experts_",),
    "router": ("router_", "per_expert_scale"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj", "conditioning_gate", "conditioning_up", "conditioning_down"),
    "embedding": ("embedding",),
}


def build(plan: Plan, report: Report) -> dict[str, Any]:
    """Run every stage; returns the manifest.

    Args:
        plan: what to build.
        report: called with a line for every step done.

    Raises:
        FieldError: when the checkpoint is not whole, or the engine is not at parity with transformers.
    """
    start = time.perf_counter()
    log: list[str] = []

    def note(line: str) -> None:
        log.append(line)
        report(line)

    checkpoint = import_checkpoint(plan, note)
    inputs = build_inputs(plan, checkpoint)
    if (done := _already_built(plan, inputs)) is not None:
        note(f"bundle   {plan.out} is up to date: nothing to do")
        return done
    work = _work_directory(plan, inputs, note)
    quantize(plan, checkpoint, work, note)
    runtime, timings = compile_engine(plan, checkpoint, work, note)
    verification = verify_engine(plan, checkpoint, work, runtime, note)
    (work / _INPUTS).unlink()
    (work / LOG).write_text("\n".join(log) + "\n")
    measured = {"denoising_step": timings, "build_seconds": round(time.perf_counter() - start, 1)}
    manifest = write_bundle(plan, inputs, runtime, verification, measured, work)
    note(f"bundle   {plan.out}: {_size(work_bytes(plan.out))}, manifest {manifest['manifest_hash'][:12]}")
    return manifest


def import_checkpoint(plan: Plan, note: Report) -> Checkpoint:
    """Open the checkpoint: every tensor it should have, no other, each of its shape."""
    checkpoint = Checkpoint(plan.checkpoint)
    count = sum(torch.Size(s).numel() for s in checkpoint.text_shapes.values())
    note(f"import   {plan.checkpoint}: {len(checkpoint.text_shapes)} text tensors, {count:,} parameters")
    if checkpoint.vision_shapes:
        note(f"import   {len(checkpoint.vision_shapes)} vision tensors stay behind: this engine reads text")
    return checkpoint


def quantize(plan: Plan, checkpoint: Checkpoint, work: Path, note: Report) -> None:
    """Write the weights at the plan's precision, one file a layer; at most one layer is in memory."""
    folder = work / "weights"
    folder.mkdir(exist_ok=True)
    for file, names in weight_files(plan.arch).items():
        target = folder / f"{file}.safetensors"
        if target.exists():
            continue
        tensors = {
            ours: checkpoint.tensor(theirs).to(getattr(torch, plan.dtypes[_class_of(ours)])).contiguous()
            for ours, theirs in names.items()
        }
        partial = target.with_suffix(".partial")
        save_file(tensors, partial)
        del tensors
        partial.rename(target)
    note(f"quantize {plan.precision}: {_size(work_bytes(folder))} in {len(weight_files(plan.arch))} files")


def compile_engine(
    plan: Plan, checkpoint: Checkpoint, work: Path, note: Report
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write what the runtime needs beside the weights, compile the network's pieces, and measure them against eager.

    Returns:
        How the runtime is to execute, and the timings behind that choice.
    """
    end = checkpoint.generation_config.get("eos_token_id")
    ends = plan.arch.eos_token_ids if end is None else tuple(end) if isinstance(end, list) else (end,)
    arch = plan.arch.with_changes(eos_token_ids=ends, vision_config=None)
    sampler = SamplerConfig.from_generation_config(checkpoint.generation_config)
    _write_json(work / "architecture.json", arch.as_dict())
    _write_json(work / "sampler.json", asdict(sampler))
    if checkpoint.tokenizer_files:
        (work / "tokenizer").mkdir(exist_ok=True)
        for path in checkpoint.tokenizer_files:
            shutil.copyfile(path, work / "tokenizer" / path.name)
    weights = TorchCpu.weights(_unchecked(plan, work, {}))
    compiled = None
    if not plan.compile:
        note("compile  not asked for (compile=false): every piece runs eagerly")
    elif aot.compiler() is None:
        note("compile  no C++ compiler found (g++, or $CXX): every piece runs eagerly; install one and build again")
    else:
        aot.compile_pieces(arch, weights, work / PIECES, lambda name: note(f"compile  {name}"))
        compiled = work / PIECES
    timings = measure(arch, weights, compiled)
    best = choose(timings)
    for t in timings:
        note(
            f"compile  a denoising step, {t['pieces']}, {t['threads']} threads: {t['ms']} ms{' (chosen)' * (t is best)}"
        )
    return {"pieces": best["pieces"], "threads": best["threads"]}, timings


def verify_engine(
    plan: Plan, checkpoint: Checkpoint, work: Path, runtime: dict[str, Any], note: Report
) -> dict[str, Any]:
    """Compare the engine, loaded from the files just written, with transformers on the checkpoint."""
    if not fits_in_memory(checkpoint):
        note("verify   not run: transformers' float32 copy does not fit into this machine's memory")
        return {"verified": "none", "parity": None}
    parity = verify(checkpoint, TorchCpu.load(_unchecked(plan, work, runtime)), plan.precision)
    note(
        f"verify   {parity.cases} cases against transformers: "
        f"largest difference {parity.max_abs:.1e}, same argmax {parity.top1:.1%}"
    )
    return {"verified": "executed", "parity": parity.as_dict()}


def write_bundle(
    plan: Plan,
    inputs: dict[str, Any],
    runtime: dict[str, Any],
    verification: dict[str, Any],
    measured: dict[str, Any],
    work: Path,
) -> dict[str, Any]:
    """Write the manifest and put the bundle in place."""
    arch = plan.arch
    manifest = {
        **inputs,
        "hardware": this_machine(),
        "runtime": runtime,
        "verified": verification["verified"],
        "measured": {
            "parity": verification["parity"],
            **measured,
            "on": platform.processor() or platform.machine(),
        },
        "io": {
            "encode": {"slot": [], "token_ids": ["tokens"], "start": []},
            "denoise": {
                "slot": [],
                "canvas_ids": [f"1 to {arch.canvas_length}"],
                "soft_embeddings": ["canvas", arch.hidden_size],
                "temperature": [],
                "draws": ["canvas"],
            },
            "cache_bytes_of_a_slot": cache_bytes(
                arch, getattr(torch, plan.dtypes["attention"]), plan.limits.context + plan.limits.canvas
            ),
        },
        "log": LOG,
    }
    written = write_manifest(work, manifest)
    replace_directory(work, plan.out)
    return written


def build_inputs(plan: Plan, checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything that decides what is built; equal inputs give an equal bundle."""
    packages = ("torch", "transformers", "safetensors", "diffgemma")
    return {
        "contract": CONTRACT,
        "gpu": plan.gpu,
        "backend": plan.backend,
        "precision": {"name": plan.precision, **plan.dtypes},
        "limits": asdict(plan.limits),
        "compile": plan.compile,
        "checkpoint": {"name": plan.checkpoint.resolve().name, "sha256": checkpoint.sha256},
        "toolchain": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
    }


def _already_built(plan: Plan, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest in place, when it is whole and of the same inputs."""
    if not (plan.out / MANIFEST).is_file():
        return None
    try:
        manifest = Bundle.open(plan.out).manifest
    except FieldError:  # damaged or for elsewhere: it is built again
        return None
    return manifest if all(manifest.get(k) == v for k, v in inputs.items()) else None


def _work_directory(plan: Plan, inputs: dict[str, Any], note: Report) -> Path:
    """``<out>.partial``, kept from a stopped build of the same inputs, else empty."""
    work = plan.out.with_name(plan.out.name + ".partial")
    stamp = json.dumps(inputs, sort_keys=True)
    if (work / _INPUTS).is_file() and (work / _INPUTS).read_text() == stamp:
        note(f"resume   {work}")
    else:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        (work / _INPUTS).write_text(stamp)
    return work


def _unchecked(plan: Plan, work: Path, runtime: dict[str, Any]) -> Bundle:
    """The unfinished bundle, to load it before there is a manifest."""
    return Bundle(work, {"limits": asdict(plan.limits), "runtime": runtime})


def _class_of(name: str) -> str:
    """Class of a tensor, which decides its dtype; what is in no other class is a norm or a scale."""
    return next((c for c, starts in _CLASSES.items() if name.startswith(starts)), "norms")


def work_bytes(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
