"""One canvas of a 184M-parameter model with the real vocabulary: this engine and transformers' ``generate`` in turns.

Same random weights, same number of forced denoising steps, same threads, both in one run, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import architecture, built_engine, console, memory, random_checkpoint, reset_peak, run, show
from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import Checkpoint
from trtllm_build import Engine, load_engine
from trtllm_build.backends.torch_cpu import TorchCpu
from trtllm_build.contract import CanvasStep, EncodeStep
from trtllm_build.gates.reference import Reference
from trtllm_build.network.linear import linear

PROMPT = 256
NEVER = 1e-9  # a mean entropy (nats) that no step comes under: all steps are forced
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8, help="denoising steps per canvas (8)")
    parser.add_argument("--rounds", type=int, default=2, help="timed canvases of each side (2); the best counts")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each side (2)")
    parser.add_argument("--precision", choices=DTYPES, action="append", help="default: both")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.side:
        serve_side(given.side[0], given.side[1], given.steps, given.threads)
        return
    rows = [compare(p, given.steps, given.rounds, given.threads) for p in given.precision or DTYPES]
    show("cpu_vs_transformers", "256 tokens after 256, one canvas", rows, steps=given.steps, threads=given.threads)


def shapes() -> Architecture:
    """The model of the comparison."""
    return architecture(
        vocab_size=262_144,
        hidden_size=512,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        num_global_key_value_heads=2,
        global_head_dim=128,
        num_experts=32,
        top_k_experts=4,
        moe_intermediate_size=128,
        sliding_window=1024,
        canvas_length=256,
        max_position_embeddings=4096,
    )


def compare(precision: str, steps: int, rounds: int, threads: int) -> dict[str, Any]:
    """Both sides in turns at one precision."""
    checkpoint = random_checkpoint("184m", shapes())
    engine = built_engine(checkpoint, f"184m/{precision}", f"precision={precision}")
    paths = {"transformers": checkpoint, "engine": engine}
    base = [sys.executable, "-m", "benchmarks.cpu_vs_transformers", "--steps", str(steps), "--threads", str(threads)]
    children = {}
    for name, path in paths.items():
        command = [*base, "--side", f"{name}:{precision}", str(path)]
        children[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in children}
    for turn in range(rounds + 1):  # the first measures memory and warms up
        for name, child in children.items():
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write("go\n")
            child.stdin.flush()
            answer = child.stdout.readline()
            if not answer:
                raise SystemExit(f"error: the {name} side ended with exit status {child.wait()}")
            results[name].append(json.loads(answer))
            console.print(f"{precision} turn {turn} {name}: {results[name][-1]['seconds']:.2f} s", style="dim")
    for child in children.values():
        child.communicate()
    seconds = {name: min(r["seconds"] for r in found[1:]) for name, found in results.items()}
    peak = {name: found[0]["peak_bytes"] for name, found in results.items()}
    parts = results["engine"][-1]["parts"]
    return {
        "precision": precision,
        "engine_tokens_per_second": 256 / seconds["engine"],
        "transformers_tokens_per_second": 256 / seconds["transformers"],
        "times_as_fast": seconds["transformers"] / seconds["engine"],
        "engine_peak_mb": peak["engine"] / 1e6,
        "transformers_peak_mb": peak["transformers"] / 1e6,
        "share_of_peak": peak["engine"] / peak["transformers"],
        **parts,
    }


def serve_side(kind: str, path: str, steps: int, threads: int) -> None:
    """A child: generates one canvas for every line on standard input, and prints what it took."""
    name, precision = kind.split(":")
    prompt = list(range(1000, 1000 + PROMPT))
    generate, parts = (our_side if name == "engine" else their_side)(Path(path), precision, prompt, steps, threads)
    for _ in sys.stdin:
        reset_peak()
        before, _ = memory()
        start = time.perf_counter()
        generate()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "peak_bytes": memory()[1] - before, "parts": parts()}), flush=True)


Side = tuple[Callable[[], object], Callable[[], dict[str, float]]]


def our_side(path: Path, precision: str, prompt: list[int], steps: int, threads: int) -> Side:
    """This engine."""
    engine = load_engine(path, threads=threads)
    for tensor in weights_of(engine):
        tensor.view(torch.uint8).flatten()[::4096].sum()  # mapped files count as weights only once they are read

    def generate() -> object:
        settings: dict[str, Any] = {"max_denoising_steps": steps, "confidence_threshold": NEVER, "ignore_eos": True}
        return engine.generate([prompt], max_tokens=256, **settings)

    return generate, lambda: where_time_goes(engine, DTYPES[precision], prompt)


def their_side(path: Path, precision: str, prompt: list[int], steps: int, _threads: int) -> Side:
    """transformers."""
    model = Reference(Checkpoint(path)).model.to(DTYPES[precision])
    ids = torch.tensor([prompt])

    def generate() -> object:
        return model.generate(ids, max_new_tokens=256, max_denoising_steps=steps, confidence_threshold=NEVER)

    return generate, dict


def on_cpu(engine: Engine) -> TorchCpu:
    """The engine's backend, which is measured part by part."""
    assert isinstance(engine._backend, TorchCpu)
    return engine._backend


def weights_of(engine: Engine) -> list[torch.Tensor]:
    """Every weight of a loaded engine."""
    w = on_cpu(engine).network.weights
    layers = [t for layer in w.layers for t in vars(layer).values() if t is not None]
    return [*layers, *(t for t in vars(w).values() if isinstance(t, torch.Tensor))]


@torch.inference_mode()
def where_time_goes(engine: Engine, dtype: torch.dtype, prompt: list[int]) -> dict[str, float]:
    """Milliseconds of the parts of one step, and of its two products with the embedding table alone.

    The floor is the arithmetic of the step at the rate of the CPU's best product of such shapes, measured here and now.
    """
    backend, arch = on_cpu(engine), engine.spec.arch
    backend.admit(99, 1024, 0)
    backend.encode([EncodeStep(99, torch.tensor(prompt), 0)])
    ids, soft = torch.arange(256), torch.randn(256, arch.hidden_size).to(dtype)
    cache = backend._caches[99]
    hidden = backend.network.denoise(ids, soft, cache)
    draws = torch.full((256,), 0.5)
    table = backend.network.weights.embedding[:4096]
    chunk = torch.randn(256, 4096).to(dtype)
    chunks = arch.vocab_size / 4096
    logits_ms = chunks * best_ms(lambda: linear(hidden, table))
    soft_ms = chunks * best_ms(lambda: linear(chunk, table.T))
    square = torch.randn(1024, 1024).to(dtype)
    flops_per_ms = 2 * 1024**3 / best_ms(lambda: linear(square, square))
    flops = 2 * 256 * (2 * arch.vocab_size * arch.hidden_size + active_parameters(arch))
    step = CanvasStep(99, ids, soft, 0.6, draws)
    parts = {
        "step_ms": best_ms(lambda: backend.denoise([step])),
        "body_ms": best_ms(lambda: backend.network.denoise(ids, soft, cache)),
        "vocabulary_ms": best_ms(lambda: backend.vocabulary.read_out(hidden, 0.6, draws, True)),
        "of_it_products_ms": logits_ms + soft_ms,
        "floor_ms": flops / flops_per_ms,
        "gflops": flops_per_ms / 1e6,
    }
    backend.release(99)
    return parts


def active_parameters(arch: Architecture) -> int:
    """Parameters of the layers that one token is multiplied with."""
    total = 0
    for layer in range(arch.num_hidden_layers):
        q, kv = arch.num_attention_heads * arch.head_size(layer), arch.kv_heads(layer) * arch.head_size(layer)
        attention = 2 * q + (1 if arch.is_global(layer) else 2) * kv
        mlp = 3 * (arch.intermediate_size + arch.top_k_experts * arch.moe_intermediate_size)
        total += arch.hidden_size * (attention + mlp + arch.num_experts)
    return total


def best_ms(run: Callable[[], object]) -> float:
    """Milliseconds of the quickest of a few runs."""
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return 1000 * best


if __name__ == "__main__":
    run(main)
