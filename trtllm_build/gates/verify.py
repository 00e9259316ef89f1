"""Parity of a built engine with transformers, on random prompts shorter and longer than the sliding window.

A precision is judged by what transformers itself loses at it: an engine may be 1.2 times as far from float32 as
transformers is with the same weights, the same roundings and the same arithmetic, on the same inputs. How far that is
says something of the model: in an untrained one rounding decides which experts tokens go to, and both are far away.

What rounding would hide is looked for without it: the engine's own weights in float32, through its own network, have to
give what transformers gives with the weights that the precision makes of the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.errors import FieldError
from trtllm_build.contract import Backend
from trtllm_build.gates.reference import Precision, Reference
from trtllm_build.hardware import free_memory

# Mean error of all logits as a share of their spread. Not the largest error: where two experts are as good as equal,
# the last bit decides which one a token goes to, and that token's logits then differ by far more than rounding.
# In float32. Right engines are within 3e-6; where two experts are as good as equal a large model may be further off.
EXACT = 3e-4
RATIO = 1.2  # of the engine's error to transformers' own at the same precision
FLOOR = 2.0**-9  # of the spread: what rounding each logit once to bfloat16 may cost, whatever the model
# Errors come prompt by prompt (one that goes to another expert takes its canvas with it), so the ratio of two equally
# good engines varies. An engine that is not clearly good over a few prompts is judged by four times as many.
_CLEARLY = 1.1
_PROMPTS, _MORE_PROMPTS = 32, 128
_SEED = 20260611
_TEMPERATURE = 0.6
_SHORT_PROMPT, _LONGER_PROMPT, _LONGEST_PROMPT = 5, 64, 2048
_WIDE, _NARROW = 64, 16  # canvases of the first two prompts, and of all others
_TOGETHER = 8  # prompts that transformers is given at once
_MOST_LOGITS = 2**28  # that are kept to compare with: 1 GB


@dataclass(frozen=True)
class Parity:
    """Differences of an engine's logits from those of transformers in float32, and transformers' own at its precision.

    Args:
        cases: number of (prompt, canvas) pairs compared, half of them self-conditioned.
        max_abs: largest difference of a logit.
        mean_relative: mean difference over the standard deviation of float32's logits.
        top1: share of canvas positions with the same argmax.
        reference_mean_relative: as ``mean_relative``, of transformers at the engine's precision; None in float32.
        reference_top1: as ``top1``, likewise.
        float32_mean_relative: mean difference between the engine's weights and network in float32 and transformers'
            with the weights of that precision; None in float32, which is compared itself.
    """

    cases: int
    max_abs: float
    mean_relative: float
    top1: float
    reference_mean_relative: float | None = None
    reference_top1: float | None = None
    float32_mean_relative: float | None = None

    def as_dict(self) -> dict[str, float]:
        """JSON-ready, rounded to what is meaningful."""
        return {name: float(f"{value:.3g}") for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        """In words, transformers' own figures beside the engine's."""
        own = f"mean difference {self.mean_relative:.1e} of the logits' spread, same argmax {self.top1:.1%}"
        if self.reference_mean_relative is None:
            return f"{own}, largest {self.max_abs:.1e}"
        theirs = f"{self.reference_mean_relative:.1e} and {self.reference_top1:.1%}"
        return f"{own}; transformers itself at this precision {theirs}, of what it gives in float32"


def fits_in_memory(checkpoint: Checkpoint) -> bool:
    """Whether transformers' float32 copy, the engine, its copy in float32 and their logits fit into free memory."""
    parameters = sum(torch.Size(shape).numel() for shape in checkpoint.text_shapes.values())
    positions = sum(2 * batch.canvases.numel() for batch in _batches(checkpoint.arch, _PROMPTS))
    return 3 * 4 * parameters + 2 * 4 * positions * checkpoint.arch.vocab_size < free_memory()


def verify(
    checkpoint: Checkpoint,
    engine: Backend,
    precision: Precision | None = None,
    widened: Callable[[], Backend] | None = None,
) -> Parity:
    """Compare an engine with transformers on ``checkpoint``'s weights.

    Args:
        checkpoint: that the engine was built from.
        engine: computes as it will, or as its GPU will.
        precision: of the engine; None for float32.
        widened: with a precision: makes the engine's weights and its network in float32, nothing rounded.

    Raises:
        FieldError: when it is further from float32 than transformers at its precision allows, or its weights or its
            network are not the checkpoint's.
    """
    if precision is None:
        parity = compare(Reference(checkpoint), engine, checkpoint.arch)
        _check(parity, parity.mean_relative, EXACT, f"mean_relative at most {EXACT} for fp32")
        return parity
    assert widened is not None, "what rounding would hide is looked for without it"
    parity = _judge(checkpoint, engine, precision, widened, _PROMPTS)
    if not parity.mean_relative <= _bound(parity, _CLEARLY):
        parity = _judge(checkpoint, engine, precision, widened, _MORE_PROMPTS)
    bound = _bound(parity, RATIO)
    allowed = f"mean_relative at most {bound:.3g}: {RATIO} times what transformers loses at this precision, and {FLOOR}"
    _check(parity, parity.mean_relative, bound, allowed)
    return parity


def compare(expected: Reference | Backend, found: Backend, arch: Architecture) -> Parity:
    """Logits of both, without and with self-conditioning, after a short and a long prompt."""
    truth = _Truth(expected, _batches(arch, 0))
    error = truth.error(found)
    return Parity(truth.cases, error.largest, error.mean, error.top1)


def _judge(
    checkpoint: Checkpoint, engine: Backend, precision: Precision, widened: Callable[[], Backend], prompts: int
) -> Parity:
    """Errors of the engine, and of transformers at its precision; one copy of transformers' model serves all of it.

    Raises:
        FieldError: when the engine's weights or its network are not the checkpoint's.
    """
    reference = Reference(checkpoint)
    truth = _Truth(reference, _batches(checkpoint.arch, prompts))
    reference.hold(precision)
    plain = compare(reference, widened(), checkpoint.arch)
    allowed = f"mean_relative at most {EXACT} for its weights in float32, nothing rounded"
    _check(plain, plain.mean_relative, EXACT, allowed)
    reference.compute(precision)
    own, error = truth.error(reference), truth.error(engine)
    return Parity(truth.cases, error.largest, error.mean, error.top1, own.mean, own.top1, plain.mean_relative)


def _bound(parity: Parity, ratio: float) -> float:
    assert parity.reference_mean_relative is not None
    return ratio * parity.reference_mean_relative + FLOOR


def _check(parity: Parity, found: float, bound: float, allowed: str) -> None:
    if not found <= bound:  # a NaN fails too
        fix = "report it with the checkpoint's config.json; no engine was written"
        raise FieldError(field="engine:parity", value=parity.as_dict(), allowed=allowed, fix=fix)


@dataclass(frozen=True)
class _Batch:
    """Prompts of one length, ``[batch, tokens]``, and a canvas after each, ``[batch, canvas]``."""

    prompts: Tensor
    canvases: Tensor


def _batches(arch: Architecture, more: int) -> list[_Batch]:
    """A short and a long prompt with wide canvases; and ``more`` of them, shorter and with narrow ones."""
    generator = torch.Generator().manual_seed(_SEED)
    room = arch.max_position_embeddings - arch.canvas_length
    past_window = arch.sliding_window + arch.canvas_length // 2 + 3

    def batch(count: int, tokens: int, canvas: int) -> _Batch:
        shapes = (count, min(tokens, room)), (count, canvas)
        return _Batch(*(torch.randint(0, arch.vocab_size, shape, generator=generator) for shape in shapes))

    wide = min(_WIDE, arch.canvas_length)
    found = [batch(1, tokens, wide) for tokens in (_SHORT_PROMPT, min(past_window, _LONGEST_PROMPT))]
    if more:
        most = _MOST_LOGITS // (2 * more * arch.vocab_size)
        narrow = max(1, min(_NARROW, arch.canvas_length, most))
        lengths = cycle((_SHORT_PROMPT, min(past_window, _LONGER_PROMPT)))
        found += [batch(_TOGETHER, tokens, narrow) for tokens in islice(lengths, more // _TOGETHER)]
    return found


@dataclass(frozen=True)
class _Error:
    """Largest and mean difference (of the spread), and the share of positions with the same argmax."""

    largest: float
    mean: float
    top1: float


class _Truth:
    """Logits to compare with, and their inputs: each batch without self-conditioning, then with its own logits."""

    def __init__(self, source: Reference | Backend, batches: Sequence[_Batch]):
        self._kept: list[tuple[_Batch, Tensor | None, Tensor]] = []
        for batch in batches:
            first = _logits(source, batch, None)
            # kept once: what a canvas is conditioned on is made of it again
            self._kept += [(batch, None, first), (batch, first, _logits(source, batch, first / _TEMPERATURE))]
        self.cases = sum(len(batch.prompts) for batch, *_ in self._kept)
        logits = [expected for *_, expected in self._kept]
        count = sum(t.numel() for t in logits)
        mean = sum(float(t.sum(dtype=torch.float64)) for t in logits) / count
        self._spread = (sum(float((t - mean).square().sum(dtype=torch.float64)) for t in logits) / count) ** 0.5

    def error(self, found: Reference | Backend) -> _Error:
        """Of ``found`` on the same inputs."""
        largest, total, same, positions, count = 0.0, 0.0, 0, 0, 0
        for batch, previous, expected in self._kept:
            logits = _logits(found, batch, None if previous is None else previous / _TEMPERATURE)
            difference = (logits - expected).abs()
            largest = max(largest, float(difference.max()))
            total += float(difference.sum(dtype=torch.float64))
            same += int((logits.argmax(-1) == expected.argmax(-1)).sum())
            positions, count = positions + batch.canvases.numel(), count + logits.numel()
        return _Error(largest, total / count / (self._spread or 1.0), same / positions)


def _logits(source: Reference | Backend, batch: _Batch, previous: Tensor | None) -> Tensor:
    """``[batch, canvas, vocab]`` float32."""
    if isinstance(source, Reference):
        return source.batch(batch.prompts, batch.canvases, previous)
    rows = zip(
        batch.prompts, batch.canvases, [None] * len(batch.prompts) if previous is None else previous, strict=True
    )
    return torch.stack([source.logits(*row) for row in rows])
