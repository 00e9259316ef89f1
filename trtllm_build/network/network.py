"""The whole network: one weight stack run in two phases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.network.attention import KV, append, attend, causal_mask, project
from trtllm_build.network.experts import experts, mlp, route
from trtllm_build.network.norm import rms_norm
from trtllm_build.network.rope import inverse_frequencies, rotation
from trtllm_build.network.weights import LayerWeights, NetworkWeights

Rope = dict[bool, tuple[Tensor, Tensor]]  # by whether the layer is global


class Network:
    """Encode and denoise over plain tensors and plain KV caches; keeps no state between calls."""

    def __init__(self, arch: Architecture, weights: NetworkWeights):
        self.arch = arch
        self.weights = weights
        self.dtype = weights.embedding.dtype
        self._frequencies = {kind: inverse_frequencies(arch, kind) for kind in (False, True)}

    def empty_cache(self) -> list[KV]:
        """A cache of length 0 for every layer."""
        arch = self.arch
        shapes = [(arch.kv_heads(i), 0, arch.head_size(i)) for i in range(arch.num_hidden_layers)]
        return [(torch.empty(shape, dtype=self.dtype), torch.empty(shape, dtype=self.dtype)) for shape in shapes]

    def embed(self, ids: Tensor) -> Tensor:
        """Scaled embeddings ``[..., hidden]`` of token ids."""
        return F.embedding(ids, self.weights.embedding) * torch.tensor(self.arch.embed_scale, dtype=self.dtype)

    def encode(self, ids: Tensor, positions: Tensor, cache: Sequence[KV]) -> list[KV]:
        """Causal pass over clean tokens that follow the cached ones.

        Args:
            ids: ``[tokens]``.
            positions: ``[tokens]``.
            cache: one ``(keys, values)`` a layer.

        Returns:
            The longer cache. Sliding layers keep their last ``sliding_window - 1`` entries: with the
            query's own, that is the window.
        """
        rope = self._rope(positions)
        hidden = self.embed(ids)
        longer = []
        for index, w in enumerate(self.weights.layers):
            window = None if self.arch.is_global(index) else self.arch.sliding_window
            q, new = self._project(hidden, index, w, rope)
            mask = causal_mask(len(ids), cache[index][0].shape[1], window)
            keys, values = append(cache[index], new)
            hidden = self._after_attention(hidden, attend(q, (keys, values), mask), w) * w.encode_scalar
            keep = 0 if window is None else max(0, keys.shape[1] - window + 1)
            longer.append((keys[:, keep:], values[:, keep:]))
        return longer

    def denoise(self, canvas_ids: Tensor, soft: Tensor, positions: Tensor, cache: Sequence[KV]) -> Tensor:
        """Bidirectional pass over one canvas, which reads all of its cache and all of itself.

        Args:
            canvas_ids: ``[canvas]``.
            soft: soft embeddings of the previous step ``[canvas, hidden]``; zeros at the first.
            positions: ``[canvas]``, continuing after the cached tokens.
            cache: one ``(keys, values)`` a layer; not changed.

        Returns:
            Normed hidden states ``[canvas, hidden]``.
        """
        rope = self._rope(positions)
        hidden = self._condition(self.embed(canvas_ids), soft)
        for index, w in enumerate(self.weights.layers):
            q, new = self._project(hidden, index, w, rope)
            attended = attend(q, append(cache[index], new), None)
            hidden = self._after_attention(hidden, attended, w) * w.denoise_scalar
        return rms_norm(hidden, self.weights.final_norm, self.arch.rms_norm_eps)

    def _rope(self, positions: Tensor) -> Rope:
        return {kind: rotation(positions, f, self.dtype) for kind, f in self._frequencies.items()}

    def _condition(self, embedded: Tensor, soft: Tensor) -> Tensor:
        """Self-conditioning: the canvas's embeddings plus an MLP of the previous step's expectation."""
        w, eps = self.weights, self.arch.rms_norm_eps
        signal = rms_norm(soft, w.conditioning_norm, eps)
        signal = mlp(signal, w.conditioning_gate_proj, w.conditioning_up_proj, w.conditioning_down_proj)
        return rms_norm(embedded + signal, None, eps)

    def _project(self, hidden: Tensor, index: int, w: LayerWeights, rope: Rope) -> tuple[Tensor, KV]:
        eps = self.arch.rms_norm_eps
        x = rms_norm(hidden, w.input_norm, eps)
        return project(x, w, self.arch.head_size(index), rope[self.arch.is_global(index)], eps)

    def _after_attention(self, hidden: Tensor, attended: Tensor, w: LayerWeights) -> Tensor:
        """Output projection and residual, then dense MLP and experts side by side, and their residual."""
        eps = self.arch.rms_norm_eps
        residual = hidden + rms_norm(F.linear(attended, w.o_proj), w.post_attention_norm, eps)
        dense = mlp(rms_norm(residual, w.pre_mlp_norm, eps), w.gate_proj, w.up_proj, w.down_proj)
        weights, ids = route(residual, w, self.arch.top_k_experts, eps)
        sparse = experts(rms_norm(residual, w.pre_experts_norm, eps), w, weights, ids)
        both = rms_norm(dense, w.post_mlp_norm, eps) + rms_norm(sparse, w.post_experts_norm, eps)
        return residual + rms_norm(both, w.post_feedforward_norm, eps)
