"""What an engine admits."""

from __future__ import annotations

from dataclasses import dataclass

PAGE = 64  # tokens of cache that are reserved at a time


@dataclass(frozen=True)
class Limits:
    """What an engine admits.

    Args:
        context: most prompt tokens plus returned tokens of one request.
        slots: canvases denoised at the same time.
        canvas: tokens per canvas.
        vocab_size: token ids run from 0 to this, exclusive.
        queue: most requests that wait for a slot.
        cache_tokens: tokens of cache of all requests together; None for as many as ``slots`` requests can need.
    """

    context: int
    slots: int
    canvas: int
    vocab_size: int
    queue: int
    cache_tokens: int | None
