"""The CPU engine: pieces compiled ahead of time, the quickest way to run measured, parity with transformers."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from nemo_diffgemma.checkpoint import Checkpoint
from trtllm_build.backends import aot
from trtllm_build.backends.torch_cpu import TorchCpu
from trtllm_build.compilers import Note, Outcome
from trtllm_build.gates.reference import Precision
from trtllm_build.gates.verify import fits_in_memory, verify
from trtllm_build.hardware import this_machine
from trtllm_build.measure import choose, measure
from trtllm_build.plan import Plan
from trtllm_build.spec import PIECES, EngineSpec


def compile_engine(plan: Plan, checkpoint: Checkpoint | None, work: Path, note: Note) -> Outcome:
    """See :class:`trtllm_build.compilers.Compiler`."""
    assert checkpoint is not None, "random weights are for GPUs"
    runtime, timings = _compile(plan, work, note)
    measured: dict[str, Any] = {"denoising_step": timings, "on": platform.processor() or platform.machine()}
    if not fits_in_memory(checkpoint):
        note("verify   not run: transformers' float32 copy does not fit into this machine's memory")
        return Outcome(this_machine(), runtime, "none", {"parity": None, **measured})
    spec = EngineSpec(work, plan.limits, runtime)
    precision = None if plan.recipe.dtype == "float32" else Precision.of_recipe(checkpoint, plan.recipe, {})
    parity = verify(checkpoint, TorchCpu.load(spec), precision, lambda: TorchCpu.widened(spec))
    note(f"verify   {parity.cases} cases against transformers: {parity}")
    return Outcome(this_machine(), runtime, "executed", {"parity": parity.as_dict(), **measured})


def _compile(plan: Plan, work: Path, note: Note) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compile the network's pieces and measure them against eager: how to execute, and the timings behind it."""
    spec = EngineSpec(work, plan.limits)
    weights = TorchCpu.weights(spec)
    compiled = None
    if not plan.compile:
        note("compile  not asked for (compile=false): every piece runs eagerly")
    elif aot.compiler() is None:
        note("compile  no C++ compiler found (g++, or $CXX): every piece runs eagerly; install one and build again")
    else:
        aot.compile_pieces(spec.arch, weights, work / PIECES, lambda name: note(f"compile  {name}"))
        compiled = work / PIECES
    timings = measure(spec.arch, weights, compiled)
    best = choose(timings)
    for t in timings:
        note(
            f"compile  a denoising step, {t['pieces']}, {t['threads']} threads: {t['ms']} ms{' (chosen)' * (t is best)}"
        )
    return {"pieces": best["pieces"], "threads": best["threads"]}, timings
