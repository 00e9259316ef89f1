"""When a canvas is finished, and what of it is text."""

from collections.abc import Collection, Sequence

from torch import Tensor


def steady(steps: int, before: Sequence[int], argmax_ids: Sequence[int]) -> int:
    """Number of steps in a row, before this one, whose argmax was this one's.

    A canvas is stable from ``stability_threshold`` of them on. Counted, not kept: the threshold is any number that a
    client sends.

    Args:
        steps: what this returned of the step before; 0 at the first step.
        before: token ids of the canvas at the step before; none at the first step.
        argmax_ids: those of this step.
    """
    return steps + 1 if before == argmax_ids else 0


def confident(entropies: Tensor, confidence_threshold: Tensor | float) -> Tensor:
    """Whether mean entropy (nats, ``[batch, canvas]``) is below the threshold: ``[batch]`` bool."""
    return entropies.mean(-1) < confidence_threshold


def text_length(ids: Sequence[int], end_ids: Collection[int]) -> int | None:
    """Number of tokens before the first end-of-sequence token; None when there is none."""
    return next((i for i, token in enumerate(ids) if token in end_ids), None)
