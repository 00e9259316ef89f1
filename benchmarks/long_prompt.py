"""Prompts of 8k, 16k and 32k tokens on a small model: answered, and how memory grows with their length."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from typing import Any

import torch

from benchmarks.common import architecture, built_engine, console, memory, random_checkpoint, reset_peak, run, show
from nemo_diffgemma.architecture import Architecture
from trtllm_build import load_engine

LENGTHS = (8192, 16384, 32768)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    engine = built_engine(random_checkpoint("long", shapes()), "long/fp32")
    if given.length:
        print(json.dumps(measure(str(engine), given.length)))
        return
    rows = []
    for length in LENGTHS:  # each in a process of its own: a heap does not shrink
        command = [sys.executable, "-m", "benchmarks.long_prompt", "--length", str(length)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        console.print(f"{length} tokens: {rows[-1]['seconds']:.1f} s", style="dim")
    growth = [(b["peak_mb"] - a["peak_mb"]) / (b["prompt"] - a["prompt"]) for a, b in itertools.pairwise(rows)]
    show("long_prompt", "one prompt, one canvas", rows, bytes_per_token=[1e6 * g for g in growth])


def shapes() -> Architecture:
    """Six layers at a window of 1024, one of them global."""
    return architecture(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_global_key_value_heads=1,
        global_head_dim=128,
        num_experts=16,
        top_k_experts=4,
        moe_intermediate_size=64,
        sliding_window=1024,
        canvas_length=256,
        max_position_embeddings=40_960,
    )


def measure(directory: str, length: int) -> dict[str, Any]:
    """Answer a prompt of ``length`` tokens; bytes above what the loaded engine takes."""
    engine = load_engine(directory)
    engine.generate([[1, 2, 3]], max_tokens=256, max_denoising_steps=2)  # what any request needs is not counted
    prompt = torch.randint(8192, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    reset_peak()
    before, _ = memory()
    start = time.perf_counter()
    answer = engine.generate([prompt], max_tokens=256, max_denoising_steps=4, ignore_eos=True)[0]
    seconds = time.perf_counter() - start
    cache = engine.stats().cache_bytes
    engine.close()
    return {
        "prompt": length,
        "answer_tokens": len(answer.token_ids),
        "seconds": seconds,
        "prompt_tokens_per_second": length / seconds,
        "peak_mb": (memory()[1] - before) / 1e6,
        "cache_mb": cache / 1e6,
    }


if __name__ == "__main__":
    run(main)
