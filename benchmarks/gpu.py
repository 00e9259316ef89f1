"""An engine on its GPU: time of a step and a commit beside what their bytes allow, tokens per second, memory.

Bytes are those that a step must read: every weight once, and the cache. What the card can move is measured first, by
copying; all percentages are of that. transformers' bfloat16 ``generate`` runs in the same process before the engine is
loaded: both do not fit together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_transformers
from benchmarks.common import OUT, architecture, console, run, show
from benchmarks.gpu_picture import write_picture
from nemo_diffgemma.architecture import Architecture
from trtllm_build.backends.cuda.backend import Cuda
from trtllm_build.backends.cuda.device_weights import random_weights
from trtllm_build.backends.cuda.ops import reference_ops
from trtllm_build.bundle import Bundle
from trtllm_build.compilers.cuda.tune import time_call
from trtllm_build.contract import CanvasStep, EncodeStep
from trtllm_build.limits import Limits
from trtllm_build.quantization.recipe import named_recipe
from trtllm_build.runtime.engine import Engine, load_engine
from trtllm_build.runtime.request import Request
from trtllm_build.sampling import SamplerConfig
from trtllm_build.spec import EngineSpec

BATCHES = (1, 2, 4, 8, 16)
PROMPTS = (256, 1024, 8192, 32_768)
STEPS = (16, 24, 48)
PROMPT = 1024  # where only one length is run
NEVER = 0.0  # a mean entropy that no step comes under: all steps are forced
CANVASES = 4  # of an answer: 1,024 tokens, as in vLLM's published figure


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", help="bundle directory, built for the GPU of this machine")
    parser.add_argument("--no-transformers", action="store_true", help="leave transformers out")
    parser.add_argument("--quick", action="store_true", help="batches 1 and 8, prompts of 1,024, 16 steps")
    parser.add_argument("--rehearse", action="store_true", help="run every line on the CPU, on a tiny model")
    given = parser.parse_args()
    if not (given.engine or given.rehearse):
        parser.error("--engine DIR is needed (`make engine GPU=h100 WEIGHTS=random` writes one), or --rehearse")
    device = torch.device("cpu" if given.rehearse else "cuda")
    batches, prompts, forced = grid(given.rehearse, given.quick)
    arch = rehearsal().arch if given.rehearse else Bundle.open(given.engine).spec.arch
    same = PROMPT if PROMPT in prompts else prompts[0]
    theirs = None if given.no_transformers else gpu_transformers.measure(arch, device, same, forced[0])
    bandwidth = copy_bandwidth(device)
    console.print(f"copying: {bandwidth / 1e9:,.0f} GB/s", style="dim")
    start = time.perf_counter()
    engine = rehearsal_engine() if given.rehearse else load_engine(given.engine)
    loaded = time.perf_counter() - start
    rows = step_rows(engine, batches, prompts, bandwidth, device)
    speeds = speed_rows(engine, batches, same, forced)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    name = "gpu_rehearsal" if given.rehearse else "gpu"
    show(f"{name}_steps", "one step and one commit", rows)
    show(
        name,
        f"answers of {CANVASES} canvases",
        speeds,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "CPU: a rehearsal, its numbers mean nothing",
        engine={} if given.rehearse else {k: engine.manifest[k] for k in ("manifest_hash", "precision", "runtime")},
        copy_gb_per_second=bandwidth / 1e9,
        load_seconds=loaded,
        peak_bytes=memory,
        transformers=theirs,
        times_transformers=None if theirs is None else speeds[0]["tokens_per_second"] / theirs["tokens_per_second"],
    )
    write_picture(rows, speeds, OUT / f"{name}.png")
    console.print(f"{OUT / name}.png")
    engine.close()


def grid(rehearse: bool, quick: bool) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Batches, prompts and forced steps to measure."""
    if rehearse:
        return (1, 2), (8, 40), (2,)
    return ((1, 8), (PROMPT,), (16,)) if quick else (BATCHES, PROMPTS, STEPS)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy reads and writes, the best of a few."""
    size = 2**31 if device.type == "cuda" else 2**24
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / time_call(lambda: target.copy_(source), device)


@torch.inference_mode()
def step_rows(
    engine: Engine, batches: Sequence[int], prompts: Sequence[int], bandwidth: float, device: torch.device
) -> list[dict[str, Any]]:
    """Milliseconds of a denoising step and of a commit at every batch and prompt that the engine admits."""
    backend, rows = engine._backend, []
    assert isinstance(backend, Cuda)
    canvas = backend.arch.canvas_length
    room = engine.limits.cache_tokens or engine.limits.slots * (engine.limits.context + canvas)
    for prompt in prompts:
        for batch in batches:
            if batch > engine.limits.slots or batch * (prompt + 2 * canvas) > room:
                console.print(f"batch {batch} at prompts of {prompt:,}: more than the engine admits", style="dim")
                continue
            filling = fill(backend, batch, prompt)
            steps = [CanvasStep(slot, _ids(canvas, backend), None, 0.6, torch.rand(canvas)) for slot in range(batch)]
            denoise = _seconds(lambda steps=steps: backend.denoise(steps), device)
            run = next(run for size, run in backend.denoise_calls() if size >= batch)
            alone = _seconds(run, device)
            commits = [EncodeStep(slot, _ids(canvas, backend), prompt) for slot in range(batch)]
            commit = _seconds(lambda commits=commits: backend.encode(commits), device, rounds=1)
            cached = backend.cache_bytes()
            read = backend.network.weights.nbytes() + cached
            rows.append(
                {
                    "what": f"batch {batch}, prompt {prompt}",
                    "batch": batch,
                    "prompt": prompt,
                    "step_ms": 1000 * denoise,
                    "step_on_device_ms": 1000 * alone,
                    "commit_ms": 1000 * commit,
                    "prefill_ms": 1000 * filling,
                    "gb_read": read / 1e9,
                    "gb_per_second": read / alone / 1e9,
                    "floor_ms": 1000 * read / bandwidth,
                    "share_of_floor": read / bandwidth / alone,
                }
            )
            console.print(f"{rows[-1]['what']}: {rows[-1]['step_on_device_ms']:.2f} ms per step", style="dim")
            for slot in range(batch):
                backend.release(slot)
    return rows


def fill(backend: Cuda, batch: int, prompt: int) -> float:
    """Encode prompts into slots; seconds of all of it."""
    start = time.perf_counter()
    for slot in range(batch):
        backend.admit(slot, prompt + 2 * backend.arch.canvas_length, 0)
        for at in range(0, prompt, backend.prefill_chunk):
            ids = _ids(min(backend.prefill_chunk, prompt - at), backend)
            (error,) = backend.encode([EncodeStep(slot, ids, at)])
            if error is not None:
                raise error
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def speed_rows(engine: Engine, batches: Sequence[int], prompt: int, forced: Sequence[int]) -> list[dict[str, Any]]:
    """Tokens per second of whole answers, scheduler, sampler and all."""
    plans = [(batch, prompt, forced[0], NEVER) for batch in batches]
    plans += [(1, prompt, steps, NEVER) for steps in forced[1:]]
    plans += [(1, prompt, engine.sampler.max_denoising_steps, engine.sampler.confidence_threshold)]
    return [speed_row(engine, *plan) for plan in plans if plan[0] <= engine.limits.slots]


def speed_row(engine: Engine, batch: int, prompt: int, steps: int, confidence: float) -> dict[str, Any]:
    """Answers of :data:`CANVASES` canvases, ``batch`` at a time."""
    tokens = CANVASES * engine.limits.canvas
    sampler = replace(SamplerConfig(), max_denoising_steps=steps, confidence_threshold=confidence)
    g = torch.Generator().manual_seed(batch)
    requests = [
        Request(
            tuple(torch.randint(engine.limits.vocab_size, (prompt,), generator=g).tolist()),
            tokens,
            seed,
            sampler,
            ignore_eos=True,
        )
        for seed in range(batch)
    ]
    start = time.perf_counter()
    answers = engine.run(requests)
    seconds = time.perf_counter() - start
    taken = [s for a in answers for s in a.denoising_steps]
    first = [a.stats.first_block_seconds or 0.0 for a in answers]
    kind = f"{steps} forced steps" if confidence == NEVER else "adaptive stopping"
    row = {
        "what": f"batch {batch}, {kind}",
        "batch": batch,
        "prompt": prompt,
        "steps_per_canvas": statistics.fmean(taken),
        "tokens_per_second": batch * tokens / seconds,
        "time_to_first_block_ms": 1000 * statistics.median(first),
    }
    console.print(f"{row['what']}: {row['tokens_per_second']:,.0f} tokens/s", style="dim")
    return row


def _ids(count: int, backend: Cuda) -> torch.Tensor:
    return torch.randint(backend.arch.vocab_size, (count,))


def _seconds(call: Any, device: torch.device, rounds: int = 5) -> float:
    """Seconds of a call, host and device, the median of a few."""
    found = []
    for _ in range(rounds):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def rehearsal() -> EngineSpec:
    """A tiny engine's bundle, without weights."""
    arch: Architecture = architecture(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_global_key_value_heads=1,
        global_head_dim=32,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=16,
        sliding_window=16,
        canvas_length=8,
        max_position_embeddings=256,
    )
    folder = Path("build/bench/rehearsal")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "architecture.json").write_text(json.dumps(arch.as_dict()))
    (folder / "sampler.json").write_text(json.dumps(asdict(SamplerConfig())))
    return EngineSpec(folder, Limits(200, 2, 8, 300, 8, None))


def rehearsal_engine() -> Engine:
    """That engine, on the CPU in plain torch."""
    spec = rehearsal()
    weights = random_weights(spec.arch, named_recipe("fp8"), torch.device("cpu"), 0)
    return Engine(spec, Cuda(spec.arch, weights, reference_ops(), spec.limits))


if __name__ == "__main__":
    run(main)
