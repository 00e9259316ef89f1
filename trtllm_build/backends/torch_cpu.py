"""The built-in CPU engine: the network in torch, weights as they lie in the bundle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors import safe_open
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.bundle import Bundle
from trtllm_build.network.attention import KV
from trtllm_build.network.network import Network
from trtllm_build.network.vocabulary import ReadOut, capped_logits, read_out, soft_embeddings
from trtllm_build.network.weights import NetworkWeights

# Tokens of a prompt encoded at a time: memory stays linear in the prompt's length.
PREFILL_CHUNK = 512


class TorchCpu:
    """See :class:`trtllm_build.backends.base.Backend`."""

    def __init__(self, arch: Architecture, weights: NetworkWeights):
        self.network = Network(arch, weights)
        self._caches: dict[int, list[KV]] = {}
        self._lengths: dict[int, int] = {}

    @classmethod
    def load(cls, bundle: Bundle) -> TorchCpu:
        """Map the bundle's weight files into memory."""

        def read(file: str, name: str) -> Tensor:
            with safe_open(bundle.weight_path(file), "pt") as tensors:
                tensor: Tensor = tensors.get_tensor(name)
            return tensor

        return cls(bundle.arch, NetworkWeights.read(bundle.arch, read))

    @torch.inference_mode()
    def encode(self, slot: int, token_ids: Tensor, positions: Tensor) -> None:
        cache = self._caches.get(slot) or self.network.empty_cache()
        for ids, where in zip(
            torch.split(token_ids, PREFILL_CHUNK), torch.split(positions, PREFILL_CHUNK), strict=True
        ):
            cache = self.network.encode(ids, where, cache)
        self._caches[slot] = cache
        self._lengths[slot] = int(positions[-1]) + 1

    @torch.inference_mode()
    def denoise(
        self, slots: Sequence[int], canvas_ids: Tensor, soft_embeddings: Tensor, temperature: Tensor, draws: Tensor
    ) -> ReadOut:
        hidden = self._hidden(slots, canvas_ids, soft_embeddings)
        arch, embedding = self.network.arch, self.network.weights.embedding
        return read_out(hidden, embedding, arch.final_logit_softcapping, arch.embed_scale, temperature, draws)

    @torch.inference_mode()
    def logits(self, prompt_ids: Tensor, canvas_ids: Tensor, previous_logits: Tensor | None) -> Tensor:
        arch, embedding = self.network.arch, self.network.weights.embedding
        slot = -1
        soft = self.new_soft_embeddings(1, len(canvas_ids))
        if previous_logits is not None:
            soft = soft_embeddings(previous_logits.to(embedding.dtype)[None], embedding, arch.embed_scale)
        try:
            self.encode(slot, prompt_ids, torch.arange(len(prompt_ids)))
            hidden = self._hidden([slot], canvas_ids[None], soft)
        finally:
            self.release(slot)
        return capped_logits(hidden[0], embedding, arch.final_logit_softcapping)

    def release(self, slot: int) -> None:
        self._caches.pop(slot, None)
        self._lengths.pop(slot, None)

    def new_soft_embeddings(self, batch: int, canvas: int) -> Tensor:
        return torch.zeros(batch, canvas, self.network.arch.hidden_size, dtype=self.network.dtype)

    def cache_bytes(self) -> int:
        return sum(t.nbytes for cache in self._caches.values() for kv in cache for t in kv)

    def _hidden(self, slots: Sequence[int], canvas_ids: Tensor, soft: Tensor) -> Tensor:
        starts = torch.tensor([self._lengths[slot] for slot in slots])
        positions = starts[:, None] + torch.arange(canvas_ids.shape[1])
        return self.network.denoise(canvas_ids, soft, positions, [self._caches[slot] for slot in slots])
