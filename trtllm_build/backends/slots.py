"""Slots that each hold one request's :class:`KVCache`: what backends share that work on one sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.contract import EncodeStep, LabelLogits, ReadStep
from trtllm_build.network.cache import PREFILL_CHUNK, KVCache


class SlotBackend:
    """The part of :class:`trtllm_build.contract.Backend` that concerns caches.

    Args:
        arch: the network's shapes.
        dtype: of keys and values.
        device: where they lie.
    """

    draws_nuclei = True
    keeps_forms = False
    reads_labels = False

    def __init__(self, arch: Architecture, dtype: torch.dtype, device: torch.device):
        self.arch = arch
        self.dtype = dtype
        self.prefill_chunk = PREFILL_CHUNK
        self._device = device
        self._caches: dict[int, KVCache] = {}

    def admit(self, slot: int, room: int, reused: int) -> None:
        held = self._caches[slot].length if slot in self._caches else 0
        if reused not in (0, held):
            raise ValueError(f"slot {slot} holds {held} tokens, cannot keep {reused}")
        with self._device:
            if reused:
                self._caches[slot].grow(room)
            else:
                self._caches[slot] = KVCache(self.arch, self.dtype, room)

    @torch.inference_mode()
    def encode(self, steps: Sequence[EncodeStep]) -> list[Exception | None]:
        results: list[Exception | None] = []
        for step in steps:
            try:
                cache = self._caches[step.slot]
                if step.start != cache.length:
                    raise ValueError(f"slot {step.slot} holds {cache.length} tokens, cannot go on at {step.start}")
                self._encode(step.token_ids, cache)
                results.append(None)
            except Exception as error:
                results.append(error)
        return results

    def read(self, steps: Sequence[ReadStep]) -> list[LabelLogits | Exception]:
        raise NotImplementedError(f"{type(self).__name__} does not read labels")

    def release(self, slot: int) -> None:
        self._caches.pop(slot, None)

    def cache_bytes(self) -> int:
        return sum(cache.nbytes() for cache in list(self._caches.values()))  # asked from any thread

    def _encode(self, ids: Tensor, cache: KVCache) -> None:
        """Causal pass over ``ids [tokens]``, which are appended to the cache."""
        raise NotImplementedError
