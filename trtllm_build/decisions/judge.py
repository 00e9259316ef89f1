"""``diffgemma-engine calibrate``: questions with known answers, asked of an engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nemo_diffgemma.decisions import Question, parse_questions
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.files import write_json
from trtllm_build.decisions.answers import answer_all
from trtllm_build.decisions.calibration import FILE, Judged, bins, calibrate
from trtllm_build.decisions.layout import Layouts
from trtllm_build.runtime.engine import Engine, load_engine

_SHAPE = '{"input": TEXT, "question": {"type": ...}, "answer": ANSWER}'
_FIX = 'write {"input": "...", "question": {"type": "predicate", "instructions": "..."}, "answer": true}'


def run(directory: Path, file: Path, picture: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Fit temperatures on labelled questions and store them in a bundle.

    Args:
        directory: the bundle.
        file: JSON lines of ``{"input", "question", "answer"}``; the answer is true or false, a choice's value, or a
            level's label.
        picture: file to draw the reliability to; None for none.
        say: called with lines for people.

    Returns:
        What was stored.

    Raises:
        FieldError: for a file that cannot be used, and for an engine that cannot be asked.
    """
    asked = list(_read(file))
    engine = load_engine(directory)
    try:
        judged = [judge(engine, *each) for each in asked]
    finally:
        engine.close()
    found = calibrate(judged, engine.manifest["manifest_hash"])
    none = "fewer than two questions of each kind"
    require(bool(found["temperatures"]), str(file), none, "two questions of a kind at least", "add more")
    if picture is not None:
        draw(judged, found["temperatures"], picture)
    write_json(directory / FILE, found)
    for kind, m in found["measured"].items():
        say(
            f"{kind}: temperature {found['temperatures'][kind]:.3f} fitted on {m['fitted_on']}; on {m['measured_on']} "
            f"others: accuracy {m['accuracy']:.3f}, calibration error {m['error_before']:.3f} -> {m['error_after']:.3f}"
        )
        held = [j for j in judged if j.kind == kind][1::2]
        for b in bins(held, found["temperatures"][kind]):
            if b.count:
                say(f"  {b.count:5} answers, confidence {b.confidence:.2f}, right {b.accuracy:.2f}")
    return found


def judge(engine: Engine, text: str, question: Question, right: int) -> Judged:
    """Ask one question whose answer is known, without calibration."""
    assert engine.tokenizer is not None
    layouts = Layouts(engine.tokenizer, engine.limits.canvas, engine.spec.arch.eos_token_ids[0])
    layout = layouts.layout([{"role": "user", "content": text}], [question])
    (answer,) = answer_all([question], layout.parts, engine.read(layout.prompt_ids, layout.canvases))
    if question.kind == "predicate":
        return Judged(question.kind, (answer["probability"], 1 - answer["probability"]), right)
    return Judged(question.kind, [p["probability"] for p in answer["probabilities"]], right)


def draw(judged: list[Judged], temperatures: dict[str, float], path: Path) -> None:
    """How often answers are right by how confident they are, before and after, as a PNG.

    Raises:
        FieldError: when nothing here can draw.
    """
    try:
        import matplotlib
    except ImportError:
        fix = "pip install matplotlib, or leave --png out"
        raise FieldError("png", str(path), "a picture needs matplotlib", fix) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(temperatures), figsize=(4 * len(temperatures), 4), squeeze=False)
    for axis, (kind, temperature) in zip(axes[0], temperatures.items(), strict=True):
        held = [j for j in judged if j.kind == kind][1::2]
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.5)
        for t, label in ((1.0, "before"), (temperature, f"after: temperature {temperature:.2f}")):
            there = [b for b in bins(held, t) if b.count]
            axis.plot([b.confidence for b in there], [b.accuracy for b in there], marker="o", label=label)
        axis.set(title=kind, xlabel="confidence", ylabel="share of right answers")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _read(file: Path) -> Iterator[tuple[str, Question, int]]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FieldError(str(file), str(error), "a file of JSON lines", "correct the path") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _labelled(line, f"{file}:{number}")


def _labelled(line: str, where: str) -> tuple[str, Question, int]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FieldError(where, line, _SHAPE, f"correct the JSON: {error}") from None
    good = isinstance(found, dict) and set(found) == {"input", "question", "answer"} and isinstance(found["input"], str)
    require(good, where, found, _SHAPE, _FIX)
    (question,) = parse_questions([found["question"]], f"{where}: question")
    values = [True, False] if question.kind == "predicate" else [option.value for option in question.options]
    answer = found["answer"]
    right = [i for i, v in enumerate(values) if v == answer and isinstance(v, bool) == isinstance(answer, bool)]
    require(bool(right), f"{where}: answer", answer, ", ".join(map(repr, values)), "write one of these")
    return found["input"], question, right[0]
