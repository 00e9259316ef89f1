"""The built-in CPU engine: the network in torch, weights as they lie in the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.backends.aot import load_pieces
from trtllm_build.backends.slots import SlotBackend
from trtllm_build.contract import CanvasStep, LabelLogits, ReadOut, ReadStep
from trtllm_build.network.cache import PREFILL_CHUNK, KVCache
from trtllm_build.network.network import Network
from trtllm_build.network.pieces import Pieces, eager_pieces
from trtllm_build.network.vocabulary import Vocabulary
from trtllm_build.network.weights import NetworkWeights
from trtllm_build.spec import EngineSpec


class TorchCpu(SlotBackend):
    """See :class:`trtllm_build.contract.Backend`."""

    keeps_forms = True
    reads_labels = True

    def __init__(self, arch: Architecture, weights: NetworkWeights, pieces: Pieces):
        super().__init__(arch, weights.embedding.dtype, torch.device("cpu"))
        self.network = Network(arch, weights, pieces)
        self.vocabulary = Vocabulary(
            weights.embedding, arch.final_logit_softcapping, arch.embed_scale, pieces.statistics
        )

    @classmethod
    def load(cls, spec: EngineSpec) -> TorchCpu:
        """Map the bundle's weights into memory, and load its compiled pieces."""
        folder = spec.pieces_directory
        pieces = eager_pieces(spec.arch) if folder is None else load_pieces(spec.arch, folder)
        return cls(spec.arch, cls.weights(spec), pieces)

    @classmethod
    def widened(cls, spec: EngineSpec) -> TorchCpu:
        """The bundle's weights and its network in float32, nothing compiled."""
        return cls(spec.arch, cls.weights(spec, torch.float32), eager_pieces(spec.arch))

    @staticmethod
    def weights(spec: EngineSpec, dtype: torch.dtype | None = None) -> NetworkWeights:
        """The bundle's weights, mapped into memory.

        Args:
            bundle: whose.
            dtype: to convert them to; None leaves them as they are stored.
        """

        @cache
        def opened(file: str) -> Any:
            return safe_open(spec.weight_path(file), "pt")  # each opening maps the whole file anew

        def read(file: str, name: str) -> Tensor:
            tensor: Tensor = opened(file).get_tensor(name)
            return tensor if dtype is None else tensor.to(dtype)

        return NetworkWeights.read(spec.arch, read)

    def _encode(self, ids: Tensor, cache: KVCache) -> None:
        self.network.encode(ids, cache)

    @torch.inference_mode()
    def denoise(self, steps: Sequence[CanvasStep]) -> list[ReadOut | Exception]:
        # Canvas by canvas: on a CPU the rounding of a matrix product depends on its number of rows, and a request's
        # tokens may not depend on its company.
        results: list[ReadOut | Exception] = []
        for step in steps:
            try:
                hidden = self.network.denoise(step.canvas_ids, step.soft_embeddings, self._caches[step.slot])
                found = self.vocabulary.read_out(
                    hidden, step.temperature, step.draws, step.soft, step.choices, step.sampling, step.constraint
                )
                results.append(found)
            except Exception as error:
                results.append(error)
        return results

    @torch.inference_mode()
    def read(self, steps: Sequence[ReadStep]) -> list[LabelLogits | Exception]:
        results: list[LabelLogits | Exception] = []
        for step in steps:
            try:
                results.append(self._read(step))
            except Exception as error:
                results.append(error)
        return results

    def _read(self, step: ReadStep) -> LabelLogits:
        cache = self._caches[step.slot]
        parts = []
        with cache.borrowed(len(step.token_ids)):
            for ids in torch.split(step.token_ids, PREFILL_CHUNK) if len(step.token_ids) else ():
                self.network.encode(ids, cache)
            for canvas_ids in step.canvases:  # one by one, as in denoise
                hidden = self.network.denoise(canvas_ids, None, cache)[step.rows]
                parts.append(self.vocabulary.read_labels(hidden, step.label_ids))
        return LabelLogits(*(torch.stack(found) for found in zip(*parts, strict=True)))

    @torch.inference_mode()
    def logits(self, prompt_ids: Tensor, canvas_ids: Tensor, previous_logits: Tensor | None) -> Tensor:
        cache = KVCache(self.arch, self.dtype, len(prompt_ids) + len(canvas_ids))
        for ids in torch.split(prompt_ids, PREFILL_CHUNK):
            self.network.encode(ids, cache)
        soft = None if previous_logits is None else self.vocabulary.soft_embeddings(previous_logits)
        return self.vocabulary.logits(self.network.denoise(canvas_ids, soft, cache))


load = TorchCpu.load
