"""What every backend gives: the two operations of the engine contract, over slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from trtllm_build.network.vocabulary import ReadOut


class Backend(Protocol):
    """A loaded engine's device side. Slots are small integers; each holds one request's KV cache.

    No tensor of vocabulary width crosses this door.
    """

    def encode(self, slot: int, token_ids: Tensor, positions: Tensor) -> None:
        """Causal pass over ``token_ids [tokens]`` at ``positions [tokens]``; appends to the slot's cache."""

    def denoise(
        self,
        slots: Sequence[int],
        canvas_ids: Tensor,
        soft_embeddings: Tensor,
        temperature: Tensor,
        draws: Tensor,
    ) -> list[ReadOut]:
        """One denoising step of the canvases in ``slots``; reads their caches, changes nothing.

        A canvas's result does not depend, to the last bit, on which others are in the batch.

        Args:
            slots: one a canvas.
            canvas_ids: ``[batch, canvas]``.
            soft_embeddings: ``[batch, canvas, hidden]``; zeros at a canvas's first step.
            temperature: ``[batch]`` float32.
            draws: ``[batch, canvas]`` uniforms in [0, 1), float32.

        Returns:
            One result a canvas, in the order of ``slots``.
        """

    def logits(self, prompt_ids: Tensor, canvas_ids: Tensor, previous_logits: Tensor | None) -> Tensor:
        """For checking only: soft-capped logits ``[canvas, vocab]`` float32 of one canvas after one prompt."""

    def release(self, slot: int) -> None:
        """Forget the slot's cache."""

    def new_soft_embeddings(self, canvas: int) -> Tensor:
        """Soft embeddings of a first step: zeros ``[canvas, hidden]`` in the engine's dtype."""

    def cache_bytes(self) -> int:
        """Bytes of KV cache held by all slots."""
