"""From what was read to answers, in the words of OpenAI's API."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_diffgemma.decisions import Kind, Question
from trtllm_build.decisions.layout import Part
from trtllm_build.runtime.read import Slot

# Of each kind of question: what log-probabilities are divided by.
Temperatures = Mapping[Kind, float]


def answer_all(
    questions: Sequence[Question],
    parts: Sequence[Sequence[Part]],
    slots: Sequence[Sequence[Slot]],
    temperatures: Temperatures | None = None,
) -> list[dict[str, Any]]:
    """An answer to each question, of the canvases that were read for them; those of one question are averaged.

    ``diagnostics`` beside OpenAI's fields: ``label_mass``, the probability that the model would have answered with a
    label at all; ``argmax_is_label``; ``standard_error`` of the winner's probability, of several samples;
    ``calibrated``.
    """
    read: list[list[tuple[Part, Slot]]] = [[] for _ in questions]
    for canvas, found in zip(parts, slots, strict=True):
        for part, slot in zip(canvas, found, strict=True):
            read[part.question].append((part, slot))
    return [_answer(q, r, temperatures) for q, r in zip(questions, read, strict=True)]


def calibrated(shares: Sequence[float], temperature: float) -> list[float]:
    """Probabilities whose logarithms are divided by a temperature, and that sum to 1 again."""
    if temperature == 1:
        return list(shares)
    logs = [math.log(share) / temperature if share > 0 else -math.inf for share in shares]
    top = max(logs)
    weights = [math.exp(log - top) for log in logs]
    return [weight / sum(weights) for weight in weights]


def _answer(question: Question, read: Sequence[tuple[Part, Slot]], temperatures: Temperatures | None) -> dict[str, Any]:
    count = len(read)
    shares, variance = [0.0] * len(read[0][0].order), [0.0] * len(read[0][0].order)
    for part, slot in read:
        for place, option in enumerate(part.order):
            shares[option] += slot.probabilities[place] / count
            if slot.standard_errors is not None:
                variance[option] += (slot.standard_errors[place] / count) ** 2
    shares = calibrated(shares, 1.0 if temperatures is None else temperatures.get(question.kind, 1.0))
    mass = sum(slot.label_mass for _, slot in read) / count
    best = max(range(len(shares)), key=shares.__getitem__)
    diagnostics: dict[str, Any] = {
        "label_mass": mass,
        "argmax_is_label": sum(slot.argmax_is_label for _, slot in read) / count,
        "calibrated": temperatures is not None and question.kind in temperatures,
    }
    if read[0][1].standard_errors is not None:
        diagnostics["standard_error"] = math.sqrt(variance[best])
    found: dict[str, Any] = {"type": question.kind, "name": question.name}
    options = question.options
    if question.kind == "predicate":
        found |= {"probability": shares[0]}
    elif question.kind == "choice":
        each = [{"value": o.value, "probability": p} for o, p in zip(options, shares, strict=True)]
        found |= {"choice": options[best].value, "confidence": shares[best] * mass, "probabilities": each}
    else:
        each = [
            {"value": i, "label": o.value, "probability": p}
            for i, (o, p) in enumerate(zip(options, shares, strict=True))
        ]
        score = sum(i * p for i, p in enumerate(shares))
        found |= {"score": score, "confidence": shares[best] * mass, "probabilities": each}
    return found | {"diagnostics": diagnostics}
