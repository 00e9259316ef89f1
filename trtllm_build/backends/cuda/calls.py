"""The two calls at their fixed shapes: on a GPU each is one CUDA graph, replayed on buffers that are filled before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trtllm_build.backends.cuda.cache import DeviceCache
from trtllm_build.backends.cuda.network import DeviceNetwork

_WARM_UPS = 2  # Triton compiles, and libraries choose, in the first call: none of it may be captured


@dataclass(frozen=True)
class DenoiseBuffers:
    """What one denoising step of ``batch`` canvases reads and gives.

    Args:
        ids: ``[batch, canvas]`` int64.
        soft: ``[batch, canvas, hidden]``, read and written.
        row: ``[2, batch * canvas]`` float32: inverse temperatures and draws.
        which: ``[2, batch]`` int32: slots and counts.
        tokens: ``[2, batch * canvas]`` int64: argmax and sample.
        entropy: ``[batch * canvas]`` float32.
        hidden: ``[batch * canvas, hidden]``, normed.
    """

    ids: Tensor
    soft: Tensor
    row: Tensor
    which: Tensor
    tokens: Tensor
    entropy: Tensor
    hidden: Tensor


class DenoiseCall:
    """Denoising steps of at most ``batch`` canvases.

    Args:
        network: what it runs.
        cache: what canvases read.
        batch: canvases.
        pool: memory of CUDA graphs; None to launch anew at every call.
    """

    def __init__(self, network: DeviceNetwork, cache: DeviceCache, batch: int, pool: Any):
        arch, device = network.arch, network.weights.embedding.device
        self.batch, self.rows = batch, batch * arch.canvas_length
        self._network, self._cache = network, cache
        canvas, hidden = arch.canvas_length, arch.hidden_size
        self.buffers = DenoiseBuffers(
            ids=torch.zeros(batch, canvas, dtype=torch.int64, device=device),
            soft=torch.zeros(batch, canvas, hidden, dtype=network.dtype, device=device),
            row=torch.full((2, self.rows), 0.5, device=device),
            which=_which(batch, cache, device),
            tokens=torch.zeros(2, self.rows, dtype=torch.int64, device=device),
            entropy=torch.zeros(self.rows, device=device),
            hidden=torch.zeros(self.rows, hidden, dtype=network.dtype, device=device),
        )
        self.run = self._run if pool is None else _captured(self._run, pool)

    def _run(self) -> None:
        b, network = self.buffers, self._network
        hidden = network.denoise(b.ids, b.soft, b.which[0], b.which[1], self._cache)
        arch = network.arch
        found = network.ops.read_out(
            hidden,
            network.weights.embedding,
            b.row[0],
            b.row[1],
            None,
            arch.final_logit_softcapping,
            arch.embed_scale,
            True,
        )
        b.tokens[0].copy_(found.argmax_ids)
        b.tokens[1].copy_(found.sampled_ids)
        b.entropy.copy_(found.entropy)
        b.soft.copy_(found.soft_embeddings.view_as(b.soft))
        b.hidden.copy_(hidden)


class EncodeCall:
    """Passes over at most ``tokens`` new tokens of at most ``batch`` sequences; arguments as :class:`DenoiseCall`'s."""

    def __init__(self, network: DeviceNetwork, cache: DeviceCache, batch: int, tokens: int, pool: Any):
        device = network.weights.embedding.device
        self.batch, self.tokens = batch, tokens
        self._network, self._cache = network, cache
        self.ids = torch.zeros(batch, tokens, dtype=torch.int64, device=device)
        self.which = _which(batch, cache, device)
        self.run = self._run if pool is None else _captured(self._run, pool)

    def _run(self) -> None:
        self._network.encode(self.ids, self.which[0], self.which[1], self._cache)


def _which(batch: int, cache: DeviceCache, device: torch.device) -> Tensor:
    """Slots and counts of a batch of nothing."""
    which = torch.zeros(2, batch, dtype=torch.int32, device=device)
    which[0] = cache.spare
    return which


def _captured(call: Callable[[], None], pool: Any) -> Callable[[], None]:
    """``call`` as a replay of what it launches; graphs of one pool share their memory: none runs beside another."""
    device = torch.cuda.current_device()
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        call()
    replay: Callable[[], None] = graph.replay
    return replay
