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
        self._caches[slot] = self._encoded(token_ids, positions, cache)
        self._lengths[slot] = int(positions[-1]) + 1

    @torch.inference_mode()
    def denoise(
        self, slots: Sequence[int], canvas_ids: Tensor, soft_embeddings: Tensor, temperature: Tensor, draws: Tensor
    ) -> list[ReadOut]:
        # Canvas by canvas: on a CPU the rounding of a matrix product depends on its number of rows, and a request's
        # tokens may not depend on its company.
        arch, embedding = self.network.arch, self.network.weights.embedding
        results = []
        for slot, ids, soft, t, u in zip(slots, canvas_ids, soft_embeddings, temperature, draws, strict=True):
            hidden = self._hidden(slot, ids, soft)
            results.append(read_out(hidden, embedding, arch.final_logit_softcapping, arch.embed_scale, float(t), u))
        return results

    @torch.inference_mode()
    def logits(self, prompt_ids: Tensor, canvas_ids: Tensor, previous_logits: Tensor | None) -> Tensor:
        arch, embedding = self.network.arch, self.network.weights.embedding
        soft = self.new_soft_embeddings(len(canvas_ids))
        if previous_logits is not None:
            soft = soft_embeddings(previous_logits.to(embedding.dtype), embedding, arch.embed_scale)
        positions = torch.arange(len(prompt_ids) + len(canvas_ids))
        cache = self._encoded(prompt_ids, positions[: len(prompt_ids)], self.network.empty_cache())
        hidden = self.network.denoise(canvas_ids, soft, positions[len(prompt_ids) :], cache)
        return capped_logits(hidden, embedding, arch.final_logit_softcapping)

    def release(self, slot: int) -> None:
        self._caches.pop(slot, None)
        self._lengths.pop(slot, None)

    def new_soft_embeddings(self, canvas: int) -> Tensor:
        return torch.zeros(canvas, self.network.arch.hidden_size, dtype=self.network.dtype)

    def cache_bytes(self) -> int:
        return sum(t.nbytes for cache in self._caches.values() for kv in cache for t in kv)

    def _encoded(self, token_ids: Tensor, positions: Tensor, cache: list[KV]) -> list[KV]:
        for ids, where in zip(
            torch.split(token_ids, PREFILL_CHUNK), torch.split(positions, PREFILL_CHUNK), strict=True
        ):
            cache = self.network.encode(ids, where, cache)
        return cache

    def _hidden(self, slot: int, canvas_ids: Tensor, soft: Tensor) -> Tensor:
        positions = self._lengths[slot] + torch.arange(len(canvas_ids))
        return self.network.denoise(canvas_ids, soft, positions, self._caches[slot])
