"""What ``temperature`` and ``top_p`` do on the demo model: right answers, steps, and different answers over seeds."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import run, show
from nemo_diffgemma.chat import Message
from nemo_diffgemma.checkpoint import HELD_OUT
from nemo_diffgemma.demo_task import judged
from nemo_diffgemma.demo_task.task import KINDS, MANY
from nemo_diffgemma.errors import require, require_integer
from nemo_diffgemma.questions import read_questions
from trtllm_build import Engine, load_engine
from trtllm_build.runtime.request import Request
from trtllm_build.sampling import Sampling

SETTINGS = (Sampling(0), Sampling(0.5), Sampling(1), Sampling(1.5), Sampling(2), Sampling(1, 0.5), Sampling(2, 0.5))
_MAX_TOKENS = 64


@dataclass(frozen=True)
class Asked:
    """A question, and what tells whether an answer is right."""

    messages: Sequence[Message]
    is_right: Callable[[str], bool]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.temperature", description=__doc__)
    parser.add_argument("--engine", type=Path, default=Path("build/demo/engine"), metavar="DIR", help="(%(default)s)")
    about = "JSON lines of questions (default: %(default)s)"
    parser.add_argument("--questions", type=Path, default=Path("build/demo/checkpoint") / HELD_OUT, help=about)
    about = "ask for made-up orders instead, each with many right answers"
    parser.add_argument("--made-up", action="store_true", help=about)
    parser.add_argument("--count", type=int, default=40, metavar="N", help="of them (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=8, metavar="N", help="for each (default: %(default)s)")
    parser.add_argument("--entropy-bound", type=float, metavar="X", help="nats (default: the checkpoint's)")
    given = parser.parse_args()
    require_integer("--count", given.count, 1)
    require_integer("--seeds", given.seeds, 1)
    options = {} if given.entropy_bound is None else {"entropy_bound": given.entropy_bound}
    chosen = made_up(given.count) if given.made_up else held_out(given.questions, given.count)
    engine = load_engine(given.engine)
    try:
        rows = [row(engine, chosen, given.seeds, sampling, options) for sampling in SETTINGS]
    finally:
        engine.close()
    name = "made-up orders" if given.made_up else "held-out questions"
    title = f"{len(chosen)} {name}, {given.seeds} seeds each"
    show("temperature", title, rows, asked=name, questions=len(chosen), seeds=given.seeds, options=options)


def held_out(file: Path, count: int) -> list[Asked]:
    """Questions of a file, of every part of it; each has one right answer."""
    require(file.is_file(), field="--questions", value=file, allowed="a file", fix="`make demo`")
    questions = read_questions(file)
    chosen = questions[:: max(1, len(questions) // count)][:count]
    return [Asked(q.messages, q.answer.__eq__) for q in chosen]


def made_up(count: int) -> list[Asked]:
    """Orders to make up, as no training has asked for them."""
    drawn = (c for c in judged(2 * count * len(KINDS), seed=0) if c.kind in MANY)
    return [Asked(c.messages[:-1], c.is_right) for c, _ in zip(drawn, range(count), strict=False)]


def row(
    engine: Engine, questions: list[Asked], seeds: int, sampling: Sampling, options: dict[str, Any]
) -> dict[str, Any]:
    """Figures of one setting."""
    assert engine.tokenizer is not None
    prompts = [engine.tokenizer.chat(q.messages) for q in questions for _ in range(seeds)]
    sampler = type(engine.sampler)(**{**vars(engine.sampler), **options})
    results = engine.run(
        [
            Request(
                tuple(prompt),
                _MAX_TOKENS,
                seed=i % seeds,
                sampler=sampler,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
            )
            for i, prompt in enumerate(prompts)
        ]
    )
    texts = [result.text for result in results]
    return {
        "setting": f"T = {sampling.temperature:g}, top_p = {sampling.top_p:g}",
        "right": statistics.fmean(questions[i // seeds].is_right(t) for i, t in enumerate(texts)),
        "steps_per_canvas": statistics.fmean(s for r in results for s in r.denoising_steps),
        "distinct_answers": statistics.fmean(
            len(set(texts[start : start + seeds])) for start in range(0, len(texts), seeds)
        ),
    }


if __name__ == "__main__":
    run(main)
