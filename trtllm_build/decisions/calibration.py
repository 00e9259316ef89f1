"""Probabilities that mean what they say: a temperature per kind of question, fitted on questions with known answers.

(Guo et al., On Calibration of Modern Neural Networks, ICML 2017.) It lies in the bundle as :data:`FILE`, with the
bundle's hash: of another bundle it is not used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_diffgemma.decisions import KINDS, Kind
from nemo_diffgemma.errors import require
from trtllm_build.decisions.answers import Temperatures, calibrated

FILE = "decisions.json"
BINS = 10
_COLDEST, _HOTTEST, _HALVINGS = 0.05, 20.0, 60


@dataclass(frozen=True)
class Judged:
    """A question whose answer is known.

    Args:
        kind: of the question.
        shares: probability of each option, as the model gave it.
        right: number of the right option.
    """

    kind: Kind
    shares: Sequence[float]
    right: int


@dataclass(frozen=True)
class Bin:
    """Answers of about the same confidence: how many, how confident they were, how often they were right."""

    count: int
    confidence: float
    accuracy: float


def read_calibration(directory: Path) -> Temperatures | None:
    """Temperatures that were fitted for the bundle in ``directory``; None for a bundle without.

    Raises:
        FieldError: for a file that is no calibration.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        bundle, temperatures = found["bundle"], {kind: float(t) for kind, t in found["temperatures"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        bundle, temperatures = None, {"": 0.0}
    good = set(temperatures) <= set(KINDS) and all(_COLDEST <= t <= _HOTTEST for t in temperatures.values())
    fix = "run diffgemma-engine calibrate again, or remove the file"
    require(good, field=f"engine:{FILE}", value=str(path), allowed="what calibrate writes", fix=fix)
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    return temperatures if bundle == manifest["manifest_hash"] else None


def fit(judged: Sequence[Judged]) -> float:
    """The temperature at which the right answers are likeliest."""

    def cost(log: float) -> float:
        each = (calibrated(j.shares, math.exp(log))[j.right] for j in judged)
        return -sum(math.log(max(p, 1e-300)) for p in each)

    low, high = math.log(_COLDEST), math.log(_HOTTEST)
    for _ in range(_HALVINGS):  # in the logarithm of the inverse the cost is convex: one valley
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if cost(left) < cost(right) else (left, high)
    return math.exp((low + high) / 2)


def bins(judged: Sequence[Judged], temperature: float = 1.0) -> list[Bin]:
    """Answers by the confidence of the winner, :data:`BINS` of equal width."""
    found: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for j in judged:
        shares = calibrated(j.shares, temperature)
        best = max(range(len(shares)), key=shares.__getitem__)
        found[min(BINS - 1, int(shares[best] * BINS))].append((shares[best], best == j.right))
    return [
        Bin(len(each), sum(c for c, _ in each) / max(1, len(each)), sum(r for _, r in each) / max(1, len(each)))
        for each in found
    ]


def error(judged: Sequence[Judged], temperature: float = 1.0) -> float:
    """Expected calibration error: how far confidence and accuracy are apart, on average over the answers."""
    return sum(b.count * abs(b.confidence - b.accuracy) for b in bins(judged, temperature)) / len(judged)


def accuracy(judged: Sequence[Judged]) -> float:
    """Share of answers that are right."""
    return sum(max(range(len(j.shares)), key=j.shares.__getitem__) == j.right for j in judged) / len(judged)


def calibrate(judged: Sequence[Judged], bundle: str) -> dict[str, Any]:
    """Fit on every other question of a kind, measure on the others; the content of :data:`FILE`."""
    temperatures: dict[str, float] = {}
    measured: dict[str, Any] = {}
    for kind in KINDS:
        mine = [j for j in judged if j.kind == kind]
        if len(mine) < 2:
            continue
        fitted, held = mine[::2], mine[1::2]
        temperatures[kind] = t = fit(fitted)
        measured[kind] = {
            "fitted_on": len(fitted),
            "measured_on": len(held),
            "accuracy": accuracy(held),
            "error_before": error(held),
            "error_after": error(held, t),
        }
    return {"bundle": bundle, "temperatures": temperatures, "measured": measured}
