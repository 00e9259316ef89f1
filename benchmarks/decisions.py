"""Decisions on the demo model (`make demo` first): right answers, calibration, order, what a question takes."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.common import demo, show
from nemo_diffgemma.decisions import Question, parse_questions
from nemo_diffgemma.demo_task.kind import Style
from nemo_diffgemma.demo_task.orders import draw_order, write_order
from nemo_diffgemma.demo_task.words import LARGE, USES, WEEKEND
from trtllm_build import Engine
from trtllm_build.decisions.answers import answer_all
from trtllm_build.decisions.calibration import Judged, accuracy, error, fit
from trtllm_build.decisions.layout import Layouts

HELD_OUT = 500


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="only write the questions, for calibrate")
    given = parser.parse_args()
    asked = labelled(2 * HELD_OUT)
    if given.write is not None:
        given.write.write_text("".join(json.dumps(each) + "\n" for each in asked))
        return
    engine, _ = demo()
    rows = []
    for name, options, samples in (
        ("as given", {}, 1),
        ("orders averaged", {"order": "permute"}, 1),
        ("8 reads", {}, 8),
    ):
        judged = [judge(engine, each, options, samples) for each in asked]
        for kind in ("predicate", "choice"):
            mine = [j for j in judged if j.kind == kind]
            held = mine[1::2]
            t = fit(mine[::2])
            rows.append(
                {
                    "asked": f"{kind}, {name}",
                    "accuracy": accuracy(held),
                    "calibration_error_before": error(held),
                    "calibration_error_after": error(held, t),
                    "temperature": t,
                }
            )
    show("decisions", f"{2 * HELD_OUT} questions, every other one held out", rows, **times(engine))
    engine.close()


def labelled(count: int) -> list[dict[str, Any]]:
    """Orders in sentences of the kind that the demo model has learnt, and what is right about them."""
    draw = random.Random(1)
    style = Style(draw)
    found = []
    for number in range(count):
        order = draw_order(style, dated=True)
        large, weekend = int(order.count) >= LARGE, order.day in WEEKEND
        use = next(use for use, items in USES.items() if order.item in items)
        asked = draw.choice(("large", "weekend", "clothing")) if number % 2 else draw.choice(("size", "time", "use"))
        if asked in ("large", "weekend", "clothing"):
            text, answer = {
                "large": ("Is it a large order?", large),
                "weekend": ("Is it for the weekend?", weekend),
                "clothing": ("Is it clothing?", use == "clothing"),
            }[asked]
            question: dict[str, Any] = {"type": "predicate", "instructions": text}
            right: Any = answer
        else:
            text, values, right = {
                "size": ("Small or large?", ["small", "large"], "large" if large else "small"),
                "time": ("Weekday or weekend?", ["weekday", "weekend"], "weekend" if weekend else "weekday"),
                "use": ("Kitchen, office or clothing?", ["kitchen", "office", "clothing"], use),
            }[asked]
            question = {"type": "choice", "instructions": text, "choices": [{"value": v} for v in values]}
        found.append({"input": write_order(order, style), "question": question, "answer": right})
    return found


def judge(engine: Engine, asked: dict[str, Any], options: dict[str, Any], samples: int) -> Judged:
    """One question to the engine."""
    (question,) = parse_questions([asked["question"]])
    layout = layouts(engine).layout([{"role": "user", "content": asked["input"]}], [question], **options)
    slots = engine.read(layout.prompt_ids, layout.canvases, samples=samples)
    (answer,) = answer_all([question], layout.parts, slots)
    return Judged(question.kind, *shares(question, answer, asked["answer"]))


def shares(question: Question, answer: dict[str, Any], right: Any) -> tuple[list[float], int]:
    """Probability of each option, and which is right."""
    if question.kind == "predicate":
        return [answer["probability"], 1 - answer["probability"]], 0 if right else 1
    return [p["probability"] for p in answer["probabilities"]], [o.value for o in question.options].index(right)


def layouts(engine: Engine) -> Layouts:
    """Of the demo's engine."""
    assert engine.tokenizer is not None
    return Layouts(engine.tokenizer, engine.limits.canvas, engine.spec.arch.eos_token_ids[0])


def times(engine: Engine) -> dict[str, float]:
    """Median seconds of a question about a text that is cached, about a new one, and of a denoising step."""
    (question,) = parse_questions([{"type": "predicate", "instructions": "Is it a large order?"}])
    cached: list[float] = []
    new: list[float] = []
    step: list[float] = []
    for number in range(60):
        for text, took in (("There are 10 black pens for Leo.", cached), (f"There are {number} red pens.", new)):
            layout = layouts(engine).layout([{"role": "user", "content": text}], [question])
            start = time.perf_counter()
            engine.read(layout.prompt_ids, layout.canvases)
            took.append(time.perf_counter() - start)
        whole = (*layout.prompt_ids, *layout.canvases[0].token_ids)
        seconds = []
        for steps in (1, 9):
            start = time.perf_counter()
            engine.generate(
                [whole], max_tokens=16, canvas_length=16, max_denoising_steps=steps, confidence_threshold=0.0
            )
            seconds.append(time.perf_counter() - start)
        step.append((seconds[1] - seconds[0]) / 8)
    named = {"question_cached_s": cached, "question_new_s": new, "denoising_step_s": step}
    return {name: statistics.median(values) for name, values in named.items()}


if __name__ == "__main__":
    main()
