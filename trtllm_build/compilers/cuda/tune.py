"""Who provides each heavy operation on the GPU at hand: measured there, and only of those that are right there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trtllm_build.backends.cuda import ops
from trtllm_build.backends.cuda.ops import Choice, Op, Provider
from trtllm_build.compilers.cuda.probes import Probe

TOLERANCE = 0.02  # root-mean-square error over that of the reference's result; bfloat16 rounds by 0.004
_ROUNDS = 5


@dataclass(frozen=True)
class Trial:
    """One provider of one operation, measured.

    Args:
        op: the operation.
        choice: the provider and its cut.
        ms: of the operation in all layers, one canvas; None when it failed.
        error: against the reference, as :data:`TOLERANCE`; None when it failed.
        alone: whether a canvas's result is the same to the last bit beside another canvas; None when it failed.
        failure: what was raised, if anything was.
    """

    op: str
    choice: Choice
    ms: float | None
    error: float | None
    alone: bool | None
    failure: str | None = None

    @property
    def usable(self) -> bool:
        """Whether it is right: near its reference, and the same whatever else is in the batch."""
        return self.error is not None and self.error <= TOLERANCE and self.alone is True

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        figures = {"ms": self.ms, "error": self.error, "alone": self.alone, "failure": self.failure}
        return {**self.choice.as_dict(), **figures, "usable": self.usable}


def tune(
    probes: Sequence[Probe], note: Callable[[str], None], extras: Mapping[str, Mapping[str, Provider]] | None = None
) -> tuple[dict[str, Choice], list[Trial]]:
    """Measure every provider of every probed operation; the quickest of those that are right is chosen.

    Args:
        probes: operations in place.
        note: called with a line per trial.
        extras: operation -> name -> provider, beside those of :mod:`trtllm_build.backends.cuda.ops`.

    Raises:
        RuntimeError: when none is.
    """
    chosen: dict[str, Choice] = {}
    trials: list[Trial] = []
    for probe in probes:
        expected = probe.run(ops.reference(probe.op), 1, probe.judged)
        done: list[Trial] = []
        for name, extra in (extras or {}).get(probe.op, {}).items():
            judge = probe.run(extra.reference, 1, probe.judged)
            done.append(_try(probe, Choice(name, {}), extra.op, judge))
            note(f"tune     {_described(done[-1])}")
        for candidate in _candidates(probe.op, done):
            done.append(_try(probe, candidate, ops.provided(probe.op, candidate), expected))
            note(f"tune     {_described(done[-1])}")
        usable = [t for t in done if t.usable and t.ms is not None]
        if not usable:
            raise RuntimeError(f"no provider of {probe.op} is right on this device: {[t.as_dict() for t in done]}")
        best = min(usable, key=lambda t: t.ms or 0.0)
        chosen[probe.op] = best.choice
        trials += done
        note(f"tune     {probe.op}: {_described(best)} is used")
    return chosen, trials


def _candidates(name: str, done: Sequence[Trial]) -> Iterator[Choice]:
    """Others first; then our own cuts, one argument after the other, each from the best of those before."""
    yield from (Choice(provider, {}) for provider in ops.OTHERS.get(name, {}))
    best = Choice("triton", {})
    for argument, cuts in ops.CUTS[name].items():
        for cut in cuts:
            yield replace(best, cuts={**best.cuts, argument: cut})
        own = [t for t in done if t.choice.provider == "triton" and t.usable and t.ms is not None]
        best = min(own, key=lambda t: t.ms or 0.0).choice if own else best


def _try(probe: Probe, choice: Choice, op: Op, expected: Sequence[Tensor]) -> Trial:
    try:
        found = probe.run(op, 1, probe.judged)
        error = max(distance(a, b) for a, b in zip(found, expected, strict=True))
        beside = probe.run(op, 2, probe.judged)
        alone = all(torch.equal(a, b[: len(a)]) for a, b in zip(found, beside, strict=True))
        seconds = time_call(lambda: probe.run(op, 1, probe.layers), found[0].device)
    except Exception as failure:  # a provider may not know this GPU, these shapes or these dtypes: then it is not used
        return Trial(probe.op, choice, None, None, None, f"{type(failure).__name__}: {failure}"[:300])
    return Trial(probe.op, choice, round(1000 * seconds, 4), float(f"{error:.3g}"), alone)


def distance(found: Tensor, expected: Tensor) -> float:
    """Root-mean-square difference over the root mean square of what is expected."""
    wide = expected.float()
    return float((found.float() - wide).square().mean().sqrt() / wide.square().mean().sqrt().clamp_min(1e-30))


def time_call(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, the best of a few; on a GPU without the time that launches take, as in a CUDA graph."""
    if device.type != "cuda":
        return time_run(call, device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return min(time_run(graph.replay, device) for _ in range(_ROUNDS))


def time_run(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, on a GPU from its first launch to its last kernel's end."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    before.record()
    call()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000


def _described(trial: Trial) -> str:
    cuts = ", ".join(f"{v}" for v in trial.choice.cuts.values())
    who = f"{trial.op} by {trial.choice.provider}{f' ({cuts})' if cuts else ''}"
    if trial.failure is not None:
        return f"{who}: {trial.failure.splitlines()[0]}"
    wrong = "" if trial.usable else ", not used: wrong" if trial.alone else ", not used: differs in company"
    return f"{who}: {trial.ms} ms, error {trial.error}{wrong}"
