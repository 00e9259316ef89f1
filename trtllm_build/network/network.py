"""The whole network: one weight stack run in two phases."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.network.attention import attend, attend_causal
from trtllm_build.network.cache import KVCache
from trtllm_build.network.experts import experts
from trtllm_build.network.norm import rms_norm
from trtllm_build.network.pieces import Pieces, before_experts_weights, condition_weights, project_weights
from trtllm_build.network.rope import inverse_frequencies, rotation
from trtllm_build.network.weights import LayerWeights, NetworkWeights


class Network:
    """Encode and denoise over plain tensors and a request's cache; keeps no state between calls."""

    def __init__(self, arch: Architecture, weights: NetworkWeights, pieces: Pieces):
        self.arch = arch
        self.weights = weights
        self.pieces = pieces
        self.dtype = weights.embedding.dtype
        self._frequencies = {kind: inverse_frequencies(arch, kind) for kind in (False, True)}
        self._project = [project_weights(w) for w in weights.layers]
        self._before = [before_experts_weights(w) for w in weights.layers]
        self._condition = condition_weights(weights)
        self._scale = torch.tensor(arch.embed_scale, dtype=self.dtype)

    def encode(self, ids: Tensor, cache: KVCache) -> None:
        """Causal pass over clean tokens ``[tokens]`` that follow the cached ones; they are cached too.

        Raises:
            FloatingPointError: naming the layer, when a hidden state is not finite; the cache is then of no use.
        """
        *_, hidden = self._encode_layers(ids, cache)
        if not _finite(hidden):
            self._blame(self._encode_layers(ids, cache), "encoding")
        cache.advance(len(ids))

    def denoise(self, canvas_ids: Tensor, soft: Tensor | None, cache: KVCache) -> Tensor:
        """Bidirectional pass over one canvas, which reads all of the cache and all of itself.

        Args:
            canvas_ids: ``[canvas]``.
            soft: soft embeddings of the previous step ``[canvas, hidden]``; None at the first.
            cache: what comes before the canvas; not changed.

        Returns:
            Normed hidden states ``[canvas, hidden]``.

        Raises:
            FloatingPointError: naming the layer, when a hidden state is not finite.
        """
        *_, hidden = self._denoise_layers(canvas_ids, soft, cache)
        if not _finite(hidden):
            self._blame(self._denoise_layers(canvas_ids, soft, cache), "denoising")
        return rms_norm(hidden, self.weights.final_norm, self.arch.rms_norm_eps)

    def _encode_layers(self, ids: Tensor, cache: KVCache) -> Iterator[Tensor]:
        """Hidden states ``[tokens, hidden]`` that each layer reads."""
        rope = self._rope(cache.length, len(ids))
        hidden = F.embedding(ids, self.weights.embedding) * self._scale
        for index, w in enumerate(self.weights.layers):
            yield hidden
            q, k, v = self._heads(index, hidden, rope)
            keys, values = cache.extend(index, k, v)
            if index + 1 < len(self.weights.layers):  # of the last layer nothing but keys and values is ever read
                window = None if self.arch.is_global(index) else self.arch.sliding_window
                hidden = self._rest(index, hidden, attend_causal(q, keys, values, window), w, w.encode_scalar)

    def _denoise_layers(self, canvas_ids: Tensor, soft: Tensor | None, cache: KVCache) -> Iterator[Tensor]:
        """Hidden states ``[canvas, hidden]`` that the first layer reads and that each layer gives."""
        rope = self._rope(cache.length, len(canvas_ids))
        embedded = F.embedding(canvas_ids, self.weights.embedding) * self._scale
        soft = torch.zeros_like(embedded) if soft is None else soft
        (hidden,) = self.pieces.condition(embedded, soft, *self._condition)
        yield hidden
        for index, w in enumerate(self.weights.layers):
            q, k, v = self._heads(index, hidden, rope)
            hidden = self._rest(index, hidden, attend(q, *cache.extend(index, k, v)), w, w.denoise_scalar)
            yield hidden

    def _rope(self, start: int, tokens: int) -> dict[bool, tuple[Tensor, Tensor]]:
        """Rotation of both kinds of layer, by whether it is global."""
        positions = torch.arange(start, start + tokens)
        return {kind: rotation(positions, f, self.dtype) for kind, f in self._frequencies.items()}

    def _heads(self, index: int, hidden: Tensor, rope: dict[bool, tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        is_global = self.arch.is_global(index)
        project = self.pieces.project_global if is_global else self.pieces.project_sliding
        return tuple(project(hidden, *rope[is_global], *self._project[index]))

    def _rest(self, index: int, hidden: Tensor, attended: Tensor, w: LayerWeights, scalar: Tensor) -> Tensor:
        pieces = self.pieces
        before = pieces.before_experts_global if self.arch.is_global(index) else pieces.before_experts_sliding
        residual, dense, x, weights, ids = before(hidden, attended, *self._before[index])
        sparse = experts(x, w.experts_gate_up, w.experts_down, weights, ids)
        norms = w.post_experts_norm, w.post_feedforward_norm
        (after,) = pieces.after_experts(residual, dense, sparse, *norms, scalar)
        return after

    def _blame(self, layers: Iterator[Tensor], phase: str) -> None:
        """Run again to find where it began: looking at every layer each time would cost every request."""
        first = "the embedding" if phase == "encoding" else "the embedding and self-conditioning"
        names = [first, *(f"layer {i}" for i in range(len(self.weights.layers)))]
        for name, hidden in zip(names, layers, strict=False):
            if not _finite(hidden):
                raise FloatingPointError(f"NaN or infinity in the hidden state after {name}, {phase}")


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())
