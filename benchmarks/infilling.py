"""Infilling on the demo model (`make demo` first): half of each held-out answer is pinned, the rest is written."""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.common import built_engine, demo, random_checkpoint, run, show
from benchmarks.cpu_vs_transformers import shapes
from trtllm_build import Engine, load_engine
from trtllm_build.runtime.engine import Generation
from trtllm_build.runtime.request import Request


def main() -> None:
    """Entry point."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    engine, questions = demo()
    assert engine.tokenizer is not None
    answers = [engine.tokenizer.encode(q.answer) for q in questions]
    free = [
        Request(tuple(engine.tokenizer.chat(q.messages)), 64, seed=i, sampler=engine.sampler)
        for i, q in enumerate(questions)
    ]
    draw = random.Random(0)
    pins = [dict(draw.sample(list(enumerate(a)), len(a) // 2)) for a in answers]
    pinned = [replace(r, pinned=p) for r, p in zip(free, pins, strict=True)]
    ends = engine.spec.arch.eos_token_ids
    allowed = [replace(r, allowed=(*a, *ends)) for r, a in zip(free, answers, strict=True)]
    rows = []
    for name, requests in (("free", free), ("half pinned", pinned), ("only the answer's tokens allowed", allowed)):
        results = engine.run(requests)
        rows.append(row(name, results, answers))
        if requests is pinned:
            changed = sum(r.token_ids[i] != t for r, p in zip(results, pins, strict=True) for i, t in p.items())
        if requests is allowed:
            left = sum(t not in a for r, a in zip(results, answers, strict=True) for t in r.token_ids)
    engine.close()
    show("infilling", f"{len(questions)} held-out answers", rows, pinned_tokens_changed=changed, allowed_sets_left=left)
    narrow()


def row(name: str, results: Sequence[Generation], answers: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Accuracy and steps of a run."""
    right = [list(r.token_ids) == list(a) for r, a in zip(results, answers, strict=True)]
    return {
        "answers": name,
        "exact_match": sum(right) / len(right),
        "steps_per_canvas": statistics.fmean(s for r in results for s in r.denoising_steps),
        "steps_per_answer": statistics.fmean(sum(r.denoising_steps) for r in results),
    }


def narrow() -> None:
    """Time of a 10-token answer by width of its canvas, on the model with the real vocabulary."""
    engine = load_engine(built_engine(random_checkpoint("184m", shapes()), "184m/fp32"))
    prompt = list(range(1000, 1256))
    widths = (256, 128, 64, 32, 10)
    best: dict[int, float] = {}
    for _ in range(3):
        for width in widths:
            best[width] = min(best.get(width, float("inf")), step_seconds(engine, prompt, width))
    engine.close()
    rows = [
        {
            "canvas": w,
            "ms_per_step": 1000 * best[w],
            "share_of_full_time": best[w] / best[256],
            "share_of_width": w / 256,
        }
        for w in widths
    ]
    show("narrow_canvas", "a 10-token answer, 184M parameters, 262,144 tokens", rows)


def step_seconds(engine: Engine, prompt: list[int], width: int) -> float:
    """Of a denoising step: what nine of them take longer than one, which leaves out the prompt."""
    settings: dict[str, Any] = {"confidence_threshold": 0.0, "ignore_eos": True, "canvas_length": width}
    seconds = []
    for steps in (1, 9):
        (result,) = engine.generate([prompt], max_tokens=10, stream=False, max_denoising_steps=steps, **settings)
        seconds.append(result.stats.seconds)
    return (seconds[1] - seconds[0]) / 8


if __name__ == "__main__":
    run(main)
