"""What every backend gives: the two operations of the engine contract, over slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trtllm_build.grammar.transitions import Transitions
from trtllm_build.sampling import PLAIN, Sampling

# Tokens of a sub-chunk of the vocabulary: probabilities are summed by it, a sample is drawn from one such sum first.
SUB = 128


@dataclass(frozen=True)
class ReadOut:
    """What one denoising step of a canvas yields; nothing of vocabulary width.

    Args:
        argmax_ids: ``[canvas]`` int64.
        sampled_ids: ``[canvas]`` int64.
        entropy: ``[canvas]`` float32, nats, of the tempered distribution.
        soft_embeddings: ``[canvas, hidden]``: expected embedding under the tempered distribution; None when the step
            was a canvas's last.
        log_z: with a grammar, nats: log-probability that what positions choose by themselves is of its form.
    """

    argmax_ids: Tensor
    sampled_ids: Tensor
    entropy: Tensor
    soft_embeddings: Tensor | None
    log_z: float | None = None


@dataclass(frozen=True)
class Constraint:
    """A grammar that binds the first positions of a canvas, all of them together.

    Args:
        transitions: the grammar.
        state: before the first position.
        rows: positions bound; those behind choose by themselves, and are not returned.
        remaining: tokens that may follow this canvas: the answer can be completed with as many.
    """

    transitions: Transitions
    state: int
    rows: int
    remaining: int


@dataclass(frozen=True)
class TokenChoice:
    """What some positions of a canvas choose from.

    Args:
        rows: positions in the canvas, ``[rows]`` int64.
        fixed: the one token of each of them, ``[rows]`` int64; with it the other two mean nothing.
        allowed: ascending token ids to choose from, ``[allowed]`` int64; None for the whole vocabulary.
        excluded: token ids ruled out.
    """

    rows: Tensor
    fixed: Tensor | None = None
    allowed: Tensor | None = None
    excluded: tuple[int, ...] = ()


@dataclass(frozen=True)
class EncodeStep:
    """New tokens of one sequence.

    Args:
        slot: whose cache they are appended to.
        token_ids: ``[tokens]`` int64, at most the backend's ``prefill_chunk``.
        start: tokens that the slot holds.
    """

    slot: int
    token_ids: Tensor
    start: int


@dataclass(frozen=True)
class CanvasStep:
    """One denoising step of one canvas.

    Args:
        slot: whose cache the canvas reads.
        canvas_ids: ``[canvas]``.
        soft_embeddings: what the previous step gave, ``[canvas, hidden]``; None at a canvas's first step.
        temperature: of this step.
        draws: ``[canvas]`` uniforms in [0, 1), float32.
        soft: whether the next soft embeddings are wanted; not after a canvas's last step.
        choices: what positions may choose from, every position in one; None: each from the whole vocabulary.
        sampling: how tokens are drawn; nothing else of the step depends on it.
        constraint: a grammar that binds positions together; without ``choices`` then, and without a nucleus.
    """

    slot: int
    canvas_ids: Tensor
    soft_embeddings: Tensor | None
    temperature: float
    draws: Tensor
    soft: bool = True
    choices: Sequence[TokenChoice] | None = None
    sampling: Sampling = PLAIN
    constraint: Constraint | None = None


@dataclass(frozen=True)
class ReadStep:
    """One denoising step of canvases that nothing follows: what stands at some of their positions?

    Args:
        slot: whose cache comes first; it stays as it is.
        token_ids: what comes between the cache and the canvases, ``[tokens]`` int64, maybe none.
        canvases: ``[samples, canvas]`` int64, which know nothing of each other.
        rows: positions that are read, ``[rows]`` int64.
        label_ids: ascending token ids whose probability is wanted, ``[labels]`` int64.
    """

    slot: int
    token_ids: Tensor
    canvases: Tensor
    rows: Tensor
    label_ids: Tensor


@dataclass(frozen=True)
class LabelLogits:
    """What a :class:`ReadStep` yields.

    Args:
        log_probabilities: ``[samples, rows, labels]`` float64, nats, at temperature 1 over the whole vocabulary.
        argmax_ids: the likeliest token of all, ``[samples, rows]`` int64.
    """

    log_probabilities: Tensor
    argmax_ids: Tensor


class Backend(Protocol):
    """A loaded engine's device side. Slots are small integers; each holds one request's KV cache.

    No tensor of vocabulary width crosses this door.

    Attributes:
        dtype: of keys and values.
        prefill_chunk: most tokens of one :class:`EncodeStep`.
        draws_nuclei: whether a step's ``top_p`` may be another than 0 and 1.
        keeps_forms: whether a step may have a ``constraint``.
        reads_labels: whether it can :meth:`read`.
    """

    dtype: torch.dtype
    prefill_chunk: int
    draws_nuclei: bool
    keeps_forms: bool
    reads_labels: bool

    def admit(self, slot: int, room: int, reused: int) -> None:
        """Make room in a slot for ``room`` tokens, canvas included, and keep the ``reused`` tokens it holds, if any.

        Raises:
            ValueError: when ``reused`` is neither 0 nor what the slot holds.
        """

    def encode(self, steps: Sequence[EncodeStep]) -> list[Exception | None]:
        """Causal pass over each sequence's new tokens, which are appended to its slot.

        Returns:
            One entry per sequence, in their order: None, or why it failed.
        """

    def denoise(self, steps: Sequence[CanvasStep]) -> list[ReadOut | Exception]:
        """One denoising step of several canvases; reads their caches, changes nothing.

        A canvas's result does not depend, to the last bit, on which others are in the batch.

        Returns:
            One result per canvas, in their order; for one that failed, why.
        """

    def read(self, steps: Sequence[ReadStep]) -> list[LabelLogits | Exception]:
        """Probabilities of some tokens at some positions of canvases; changes nothing.

        A result does not depend, to the last bit, on which others are in the batch.

        Returns:
            One result per step, in their order; for one that failed, why.
        """

    def logits(self, prompt_ids: Tensor, canvas_ids: Tensor, previous_logits: Tensor | None) -> Tensor:
        """For checking only: soft-capped logits ``[canvas, vocab]`` float32 of one canvas after one prompt."""

    def release(self, slot: int) -> None:
        """Forget the slot's cache."""

    def cache_bytes(self) -> int:
        """Bytes of KV cache held by all slots."""
