"""The whole network on a device, for several sequences at once, as a fixed list of launches.

Nothing here looks at a value: every shape follows from the shapes of the arguments, so that a call can be captured in a
CUDA graph and replayed with other contents.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.backends.cuda.cache import DeviceCache, positions
from trtllm_build.backends.cuda.device_weights import DeviceLayer, DeviceWeights
from trtllm_build.backends.cuda.ops import Ops
from trtllm_build.network.rope import inverse_frequencies, rotation
from trtllm_build.quantization.fp8 import Rows

Rope = dict[bool, tuple[Tensor, Tensor]]


class DeviceNetwork:
    """Encode and denoise over batches; keeps no state between calls but the cache it is given."""

    def __init__(self, arch: Architecture, weights: DeviceWeights, ops: Ops):
        self.arch = arch
        self.weights = weights
        self.ops = ops
        self.dtype = weights.embedding.dtype
        device = weights.embedding.device
        self._frequencies = {kind: inverse_frequencies(arch, kind).to(device) for kind in (False, True)}
        # a provider of experts may quantise what it reads by itself
        self._plain = bool(getattr(ops.experts, "reads_plain", False))
        self._scale = torch.tensor(arch.embed_scale, dtype=self.dtype, device=device)

    def encode(self, ids: Tensor, slots: Tensor, counts: Tensor, cache: DeviceCache) -> None:
        """Causal pass over new tokens, which are appended to the cache.

        Args:
            ids: ``[batch, tokens]`` int64; what is past a sequence's count may be any token.
            slots: ``[batch]`` int32.
            counts: ``[batch]`` int32, tokens of each sequence that are real.
            cache: of all slots; its lengths grow by ``counts``.
        """
        rope = self._rope(cache.lengths, slots, ids.shape[1])
        hidden = F.embedding(ids.flatten(), self.weights.embedding) * self._scale
        last = len(self.weights.layers) - 1
        normed: Rows | None = self._first_norm(hidden)
        for index, w in enumerate(self.weights.layers):
            q, k, v = self._heads(index, normed, rope, ids.shape)
            if index < last:  # of the last layer nothing but keys and values is ever read
                window = None if self.arch.is_global(index) else self.arch.sliding_window
                attended = self.ops.attend(q, k, v, cache.layers[index], slots, window, True, counts=counts)
                scalar = w.rest["encode_scalar"]
            self.ops.append(k, v, cache.layers[index], slots, counts)
            if index < last:
                hidden, normed = self._rest(index, hidden, attended, scalar)
        cache.lengths.index_add_(0, slots.long(), counts)

    def denoise(self, ids: Tensor, soft: Tensor, slots: Tensor, counts: Tensor, cache: DeviceCache) -> Tensor:
        """Bidirectional pass over canvases, each of which reads its slot's cache and all of itself.

        Args:
            ids: ``[batch, canvas]`` int64.
            soft: soft embeddings of the previous step ``[batch, canvas, hidden]``; zeros at the first.
            slots: ``[batch]`` int32.
            counts: ``[batch]`` int32, tokens of each canvas that are real.
            cache: of all slots; not changed.

        Returns:
            Normed hidden states ``[batch * canvas, hidden]``.
        """
        rope = self._rope(cache.lengths, slots, ids.shape[1])
        hidden = self._condition(F.embedding(ids.flatten(), self.weights.embedding) * self._scale, soft.flatten(0, 1))
        normed: Rows | None = self._first_norm(hidden)
        for index, w in enumerate(self.weights.layers):
            q, k, v = self._heads(index, normed, rope, ids.shape)
            window = None if self.arch.is_global(index) else self.arch.sliding_window
            attended = self.ops.attend(q, k, v, cache.layers[index], slots, window, False, counts=counts)
            hidden, normed = self._rest(index, hidden, attended, w.rest["denoise_scalar"])
        final: Tensor = self.ops.rms_norm(hidden, self.weights.final_norm, self.arch.rms_norm_eps, False)
        return final

    def _condition(self, embedded: Tensor, soft: Tensor) -> Tensor:
        """Self-conditioning: the canvas's embeddings plus an MLP of the previous step's expectation, normed."""
        w, ops, eps = self.weights, self.ops, self.arch.rms_norm_eps
        x = ops.rms_norm(soft, w.conditioning_norm, eps, False)
        gated = ops.gelu_gated(ops.linear(x, w.conditioning_gate_up, self.dtype), False)
        hidden: Tensor = ops.rms_norm(embedded + ops.linear(gated, w.conditioning_down, self.dtype), None, eps, False)
        return hidden

    def _first_norm(self, hidden: Tensor) -> Rows:
        first = self.weights.layers[0]
        rows: Rows = self.ops.rms_norm(hidden, first.rest["input_norm"], self.arch.rms_norm_eps, first.quantized)
        return rows

    def _rope(self, lengths: Tensor, slots: Tensor, tokens: int) -> Rope:
        """Cosine and sine ``[batch * tokens, head_size]`` of both kinds of layer, by whether it is global."""
        at = positions(lengths, slots, tokens)
        return {kind: rotation(at, f, torch.float32) for kind, f in self._frequencies.items()}

    def _heads(self, index: int, normed: Rows | None, rope: Rope, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[batch, tokens, heads, head_size]``, normed and turned."""
        arch, w = self.arch, self.weights.layers[index]
        is_global = arch.is_global(index)
        q, k, v = self.ops.heads(
            self.ops.linear(normed, w.qkv, self.dtype),
            w.rest["q_norm"],
            w.rest["k_norm"],
            *rope[is_global],
            arch.num_attention_heads,
            arch.kv_heads(index),
            arch.head_size(index),
            arch.rms_norm_eps,
        )
        batch, tokens = shape
        return q.unflatten(0, (batch, tokens)), k.unflatten(0, (batch, tokens)), v.unflatten(0, (batch, tokens))

    def _rest(self, index: int, hidden: Tensor, attended: Tensor, scalar: Tensor) -> tuple[Tensor, Rows | None]:
        """All of a layer behind its attention, and what the next layer reads."""
        arch, ops, w = self.arch, self.ops, self.weights.layers[index]
        r, eps, dtype = w.rest, self.arch.rms_norm_eps, self.dtype
        rows = attended.flatten(0, 1)
        projected = ops.linear(ops.quantize_rows(rows) if w.quantized else rows, w.o, dtype)
        norms = r["post_attention_norm"], r["pre_mlp_norm"], r["pre_experts_norm"]
        residual, mlp_input, experts_input = ops.after_attention(
            hidden, projected, *norms, eps, w.quantized, w.quantized and not self._plain
        )
        weights, ids = ops.route(
            residual, r["router_scale"], r["router_proj"], r["per_expert_scale"], arch.top_k_experts, eps
        )
        gated = ops.gelu_gated(ops.linear(mlp_input, w.gate_up, dtype), w.quantized)
        dense = ops.linear(gated, w.down, dtype)
        sparse = ops.experts(experts_input, w.experts_gate_up, w.experts_down, weights, ids, dtype)
        following = self._next(index)
        norms = r["post_mlp_norm"], r["post_experts_norm"], r["post_feedforward_norm"]
        result: tuple[Tensor, Rows | None] = ops.after_experts(
            residual,
            dense,
            sparse,
            *norms,
            scalar,
            eps,
            next_norm=None if following is None else following.rest["input_norm"],
            quantized=following is not None and following.quantized,
        )
        return result

    def _next(self, index: int) -> DeviceLayer | None:
        layers = self.weights.layers
        return layers[index + 1] if index + 1 < len(layers) else None
