"""What ``temperature`` and ``top_p`` do on the demo model: right answers, steps, and different answers over seeds."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import run, show
from nemo_diffgemma.checkpoint import HELD_OUT
from nemo_diffgemma.errors import require, require_integer
from nemo_diffgemma.questions import Question, read_questions
from trtllm_build import Engine, load_engine
from trtllm_build.runtime.request import Request
from trtllm_build.sampling import Sampling

SETTINGS = (Sampling(0), Sampling(0.5), Sampling(1), Sampling(1.5), Sampling(2), Sampling(1, 0.5), Sampling(2, 0.5))
_MAX_TOKENS = 64


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.temperature", description=__doc__)
    parser.add_argument("--engine", type=Path, default=Path("build/demo/engine"), metavar="DIR", help="(%(default)s)")
    about = "JSON lines of questions (default: %(default)s)"
    parser.add_argument("--questions", type=Path, default=Path("build/demo/checkpoint") / HELD_OUT, help=about)
    parser.add_argument("--count", type=int, default=40, metavar="N", help="of them (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=8, metavar="N", help="for each (default: %(default)s)")
    parser.add_argument("--entropy-bound", type=float, metavar="X", help="nats (default: the checkpoint's)")
    given = parser.parse_args()
    require_integer("--count", given.count, 1)
    require_integer("--seeds", given.seeds, 1)
    require(given.questions.is_file(), field="--questions", value=given.questions, allowed="a file", fix="`make demo`")
    options = {} if given.entropy_bound is None else {"entropy_bound": given.entropy_bound}
    questions = read_questions(given.questions)
    chosen = questions[:: max(1, len(questions) // given.count)][: given.count]  # of every kind: the file is ordered
    engine = load_engine(given.engine)
    try:
        rows = [row(engine, chosen, given.seeds, sampling, options) for sampling in SETTINGS]
    finally:
        engine.close()
    title = f"{len(chosen)} held-out questions, {given.seeds} seeds each"
    show("temperature", title, rows, questions=len(chosen), seeds=given.seeds, options=options)


def row(
    engine: Engine, questions: list[Question], seeds: int, sampling: Sampling, options: dict[str, Any]
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
        "exact_match": statistics.fmean(t == questions[i // seeds].answer for i, t in enumerate(texts)),
        "steps_per_canvas": statistics.fmean(s for r in results for s in r.denoising_steps),
        "distinct_answers": statistics.fmean(
            len(set(texts[start : start + seeds])) for start in range(0, len(texts), seeds)
        ),
    }


if __name__ == "__main__":
    run(main)
