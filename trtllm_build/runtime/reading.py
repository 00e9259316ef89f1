"""A request that reads: which canvas is next, and what its probabilities come to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nemo_diffgemma.diffusion import draws
from nemo_diffgemma.errors import require
from trtllm_build.contract import LabelLogits, ReadStep
from trtllm_build.limits import Limits
from trtllm_build.runtime.read import Label, Reading, ReadRequest, Slot
from trtllm_build.runtime.request import Block, CanvasTimes, FinishReason, RequestStats


class ReadingSequence:
    """State of one request; it answers to what :class:`trtllm_build.runtime.sequence.RunningSequence` does, as far as
    the engine's thread asks a request that reads.

    Args:
        request: what was asked.
        emit: called with a :class:`Reading` for each canvas, then with a block.
        limits: of the engine.

    Raises:
        FieldError: when the request does not fit the engine's limits.
    """

    tokens = accepted = 0  # nothing is written

    def __init__(self, request: ReadRequest, emit: Callable[[Reading | Block], None], limits: Limits):
        _check(request, limits)
        self.request = request
        self.emit = emit
        self._vocab_size = limits.vocab_size
        self._started: float | None = None
        self.canvas_index = -1
        self.steps = 0

    def next_step(self, slot: int) -> ReadStep:
        """What the backend needs for the next canvas."""
        self._started = time.monotonic()
        self.canvas_index += 1
        canvas = self.request.canvases[self.canvas_index]
        rows = torch.tensor(canvas.rows)
        ids = torch.tensor([0 if token is None else token for token in canvas.canvas_ids])
        canvases = ids.repeat(self.request.samples, 1)
        for sample in range(self.request.samples):
            # the same for every canvas of a request: its result does not depend on those before it
            noise = draws.uniforms(self.request.seed, 0, draws.INITIAL_STEP + sample, draws.NOISE, len(ids))
            canvases[sample, rows] = draws.uniform_to_token(noise, self._vocab_size)[rows]
        wanted = sorted({token for labels in canvas.labels for label in labels for token in label})
        self._wanted = torch.tensor(wanted)
        return ReadStep(slot, torch.tensor(canvas.token_ids, dtype=torch.int64), canvases, rows, self._wanted)

    def advance(self, result: LabelLogits) -> bool:
        """Take a canvas's result and tell it. True when it was the last one.

        Raises:
            FloatingPointError: when a probability is not a number.
        """
        self.steps += self.request.samples
        if not bool(torch.isfinite(result.log_probabilities).all()):
            raise FloatingPointError(f"NaN or infinity in canvas {self.canvas_index}")
        labels = self.request.canvases[self.canvas_index].labels
        slots = [self._slot(result, row, found) for row, found in enumerate(labels)]
        self.emit(Reading(self.canvas_index, tuple(slots)))
        self._started = None
        return self.canvas_index + 1 == len(self.request.canvases)

    def canvas_times(self, ended: float) -> CanvasTimes | None:
        """Of the canvas under way; None when there is none."""
        return None if self._started is None else CanvasTimes(self._started, ended, None, 0, False, False)

    def end(self, reason: FinishReason, stats: RequestStats, error: str | None = None) -> Block:
        """The last event."""
        return Block(max(self.canvas_index, 0), (), "", 0, (), reason, error, stats)

    def _slot(self, result: LabelLogits, row: int, labels: Sequence[Label]) -> Slot:
        logs = result.log_probabilities[:, row]
        columns = [torch.searchsorted(self._wanted, torch.tensor(label)) for label in labels]
        weights = torch.stack([logs[:, c].logsumexp(-1) for c in columns], dim=-1)  # [samples, labels]
        shares = torch.softmax(weights, dim=-1)
        ids = torch.tensor([token for label in labels for token in label])
        samples = len(logs)
        errors = None if samples == 1 else _listed(shares.std(0) / samples**0.5)
        return Slot(
            probabilities=_listed(shares.mean(0)),
            label_mass=float(weights.logsumexp(-1).exp().mean()),
            argmax_is_label=float(torch.isin(result.argmax_ids[:, row], ids).double().mean()),
            standard_errors=errors,
        )


def _listed(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())


def _check(request: ReadRequest, limits: Limits) -> None:
    fixed = [t for c in request.canvases for t in (*c.token_ids, *(t for t in c.canvas_ids if t is not None))]
    labels = [t for c in request.canvases for labels in c.labels for label in labels for t in label]
    wrong = [t for t in (*request.prompt_ids, *fixed, *labels) if not 0 <= t < limits.vocab_size]
    allowed = f"token ids from 0 to {limits.vocab_size - 1}"
    require(not wrong, field="prompt", value=wrong[:1], allowed=allowed, fix="use this engine's tokenizer")
    widest = max(len(c.canvas_ids) for c in request.canvases)
    require(
        widest <= limits.canvas,
        field="canvases",
        value=f"{widest} positions",
        allowed=f"at most {limits.canvas}, the model's canvas",
        fix="ask less at once",
    )
    most = limits.context + limits.canvas if limits.cache_tokens is None else limits.cache_tokens
    before = request.room - widest
    require(
        request.room <= most and before <= limits.context,
        field="prompt",
        value=f"{before} tokens",
        allowed=f"at most {min(limits.context, most - widest)} tokens, question included (context {limits.context})",
        fix="shorten it, or build with a larger gpu.limits.context",
    )
