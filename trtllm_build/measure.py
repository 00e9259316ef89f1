"""What the build times to decide how an engine runs on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nemo_diffgemma.architecture import Architecture
from trtllm_build.backends.aot import load_pieces
from trtllm_build.backends.torch_cpu import TorchCpu
from trtllm_build.contract import CanvasStep, EncodeStep
from trtllm_build.hardware import available_cpus
from trtllm_build.network.pieces import eager_pieces
from trtllm_build.network.weights import NetworkWeights

_ROUNDS = 4
_REPAYS = 0.75
_LEAST_SECONDS = 0.02  # of one timing: a step of a small model is too short to time alone


def measure(arch: Architecture, weights: NetworkWeights, compiled: Path | None) -> list[dict[str, Any]]:
    """Milliseconds of a denoising step of one full canvas after a prompt as long, for each way to run it.

    The ways take turns, so that what else the machine does hits all of them; the best round of each counts.

    Args:
        arch: the network's shapes.
        weights: its weights.
        compiled: directory of compiled pieces; None when there are none.

    Returns:
        ``{pieces: eager | compiled, threads, ms}`` each.
    """
    pieces = {"eager": eager_pieces(arch)}
    if compiled is not None:
        pieces["compiled"] = load_pieces(arch, compiled)
    backends = {name: TorchCpu(arch, weights, p) for name, p in pieces.items()}
    threads = sorted({1, len(available_cpus())})
    before = torch.get_num_threads()
    best: dict[tuple[str, int], float] = {}
    try:
        for _ in range(_ROUNDS):
            for count in threads:
                torch.set_num_threads(count)
                for name, backend in backends.items():
                    best[name, count] = min(best.get((name, count), float("inf")), _step_seconds(backend, arch))
    finally:
        torch.set_num_threads(before)
    return [{"pieces": n, "threads": count, "ms": float(f"{1000 * s:.3g}")} for (n, count), s in best.items()]


def choose(timings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The quickest of :func:`measure`'s, on as few threads as will do.

    More threads must save a quarter of the time: a server needs cores for other things than denoising, and a thread
    that waits for a core holds up all others.
    """
    best, *more = sorted(timings, key=lambda t: (t["threads"], t["ms"]))
    for t in more:
        if t["ms"] < (best["ms"] if t["threads"] == best["threads"] else _REPAYS * best["ms"]):
            best = t
    return best


def _step_seconds(backend: TorchCpu, arch: Architecture) -> float:
    canvas = arch.canvas_length
    ids = torch.arange(canvas) % arch.vocab_size
    backend.admit(0, 2 * canvas, 0)
    backend.encode([EncodeStep(0, ids, 0)])
    soft = torch.ones(canvas, arch.hidden_size, dtype=backend.dtype)
    step = CanvasStep(0, ids, soft, 0.6, torch.full((canvas,), 0.5))
    backend.denoise([step])
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < _LEAST_SECONDS:
        (result,) = backend.denoise([step])
        if isinstance(result, Exception):
            raise result
        count += 1
    return (time.perf_counter() - start) / count
