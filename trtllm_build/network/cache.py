"""Keys and values of one request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nemo_diffgemma.architecture import Architecture

# Tokens encoded at a time: memory beside the cache is the same for any length of prompt.
PREFILL_CHUNK = 512


class KVCache:
    """Buffers of every layer, ``[rows, kv_heads, head_size]`` each, allocated once for all that a request may need.

    Global layers have a row a token. Sliding layers keep the last ``window - 1`` tokens (with a query's own, that is
    the window) and rows for what is encoded or denoised next. The operating system gives memory to a row when it is
    first written, so a request that ends early has used what it filled.

    Args:
        arch: the network's shapes.
        dtype: of keys and values.
        room: most tokens, those of a running canvas included.
    """

    def __init__(self, arch: Architecture, dtype: torch.dtype, room: int):
        self._arch = arch
        self.length = 0
        self.room = room
        self.buffers = [
            (torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)) for shape in _shapes(arch, room)
        ]

    def held(self, layer: int) -> int:
        """Tokens that a layer still has."""
        return self.length if self._arch.is_global(layer) else min(self.length, self._arch.sliding_window - 1)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new tokens behind those held, and return all of them: views ``[held + new, kv_heads, head_size]``.

        They count as held from :meth:`advance` on; until then the next call writes over them.
        """
        start, end = self.held(layer), self.held(layer) + len(keys)
        for buffer, new in zip(self.buffers[layer], (keys, values), strict=True):
            buffer[start:end] = new
        return self.buffers[layer][0][:end], self.buffers[layer][1][:end]

    def advance(self, tokens: int) -> None:
        """Keep the ``tokens`` that :meth:`extend` wrote last; sliding layers drop what left the window."""
        for layer, buffers in enumerate(self.buffers):
            end = self.held(layer) + tokens
            dropped = end - (self._arch.sliding_window - 1)
            if self._arch.is_global(layer) or dropped <= 0:
                continue
            for buffer in buffers:
                buffer[: end - dropped] = buffer[dropped:end].clone()
        self.length += tokens

    @contextmanager
    def borrowed(self, tokens: int) -> Iterator[None]:
        """What is kept inside, ``tokens`` at most, is forgotten at the end: the cache is what it was, to the last bit.

        Sliding layers that have to drop something for it are copied meanwhile.
        """
        length = self.length
        saved = {
            layer: [buffer[: self.held(layer)].clone() for buffer in pair]
            for layer, pair in enumerate(self.buffers)
            if not self._arch.is_global(layer) and length + tokens > self._arch.sliding_window - 1
        }
        try:
            yield
        finally:
            self.length = length
            for layer, copies in saved.items():
                for buffer, copy in zip(self.buffers[layer], copies, strict=True):
                    buffer[: len(copy)] = copy

    def grow(self, room: int) -> None:
        """Make room for more tokens, keeping those held."""
        if room <= self.room:
            return
        larger = KVCache(self._arch, self.buffers[0][0].dtype, room)
        for layer, (old, new) in enumerate(zip(self.buffers, larger.buffers, strict=True)):
            for source, target in zip(old, new, strict=True):
                target[: self.held(layer)] = source[: self.held(layer)]
        self.buffers, self.room = larger.buffers, room

    def nbytes(self) -> int:
        """Bytes of what it holds."""
        return sum(t[: self.held(layer)].nbytes for layer, pair in enumerate(self.buffers) for t in pair)


def cache_bytes(arch: Architecture, dtype: torch.dtype, room: int) -> int:
    """Bytes that a request of ``room`` tokens can come to fill, known before it is admitted."""
    elements = sum(rows * heads * size for rows, heads, size in _shapes(arch, room))
    return 2 * elements * dtype.itemsize


def _shapes(arch: Architecture, room: int) -> list[tuple[int, int, int]]:
    sliding = min(room, arch.sliding_window - 1 + max(PREFILL_CHUNK, arch.canvas_length))
    return [
        (room if arch.is_global(i) else sliding, arch.kv_heads(i), arch.head_size(i))
        for i in range(arch.num_hidden_layers)
    ]
