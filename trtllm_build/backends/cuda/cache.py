"""Keys and values of all slots on a device: pages of global layers, rings of sliding ones."""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_diffgemma.architecture import Architecture
from trtllm_build.kernels.attention.cache import LayerCache
from trtllm_build.limits import PAGE


class DeviceCache:
    """Buffers of every layer, and which of their pages are whose.

    Global layers share one pool of pages, given out at admission: the same page number in each of them. A sliding layer
    has a ring of its own for each slot, of as many pages as a window and one chunk of new tokens need.

    Args:
        arch: the network's shapes.
        dtype: of keys and values.
        device: where they lie.
        slots: requests at a time.
        pages: of the pool, :data:`trtllm_build.limits.PAGE` tokens each.
        context: most tokens of one slot.
        chunk: most tokens appended at a time.
    """

    def __init__(
        self,
        arch: Architecture,
        dtype: torch.dtype,
        device: torch.device,
        slots: int,
        pages: int,
        context: int,
        chunk: int,
    ):
        self._arch = arch
        ring = -(-max(arch.sliding_window - 1 + PAGE, chunk) // PAGE)
        # one slot more than there are: where a batch is filled up, its rows read and write there
        every = slots + 1
        self.spare = slots
        self.lengths = torch.zeros(every, dtype=torch.int32, device=device)
        self._held = [0] * every
        # page 0 of the pool is the spare slot's, and what a table says where it says nothing
        self._table = torch.zeros(every, -(-max(context, chunk) // PAGE), dtype=torch.int32, device=device)
        rings = torch.arange(every * ring, dtype=torch.int32, device=device).view(every, ring)
        self._free = list(range(pages, 0, -1))
        self._owned: dict[int, list[int]] = {}
        self.layers: list[LayerCache] = []
        for layer in range(arch.num_hidden_layers):
            is_global = arch.is_global(layer)
            shape = (pages + 1 if is_global else every * ring, PAGE, arch.kv_heads(layer), arch.head_size(layer))
            # rows that nothing was written to are masked, but a NaN there would survive the mask's product with 0
            keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
            self.layers.append(LayerCache(keys, values, self._table if is_global else rings, self.lengths))

    def admit(self, slot: int, room: int, reused: int) -> None:
        """Give a slot pages for ``room`` tokens, keeping the ``reused`` it holds.

        Raises:
            ValueError: when ``reused`` is neither 0 nor what the slot holds.
            MemoryError: when the pool has too few pages left.
        """
        if reused not in (0, self._held[slot]):
            raise ValueError(f"slot {slot} holds {self._held[slot]} tokens, cannot keep {reused}")
        if not reused:
            self.release(slot)
        owned = self._owned.setdefault(slot, [])
        wanted = -(-room // PAGE) - len(owned)
        if wanted > len(self._free):
            raise MemoryError(f"{wanted} pages of {PAGE} tokens wanted, {len(self._free)} left")
        owned += [self._free.pop() for _ in range(wanted)]
        self._table[slot, : len(owned)] = torch.tensor(owned, dtype=torch.int32)

    def release(self, slot: int) -> None:
        """Take a slot's pages back."""
        self._free += reversed(self._owned.pop(slot, []))
        self._held[slot] = 0
        self.lengths[slot] = 0

    def held(self, slot: int) -> int:
        """Tokens in a slot."""
        return self._held[slot]

    def appended(self, slot: int, tokens: int) -> None:
        """Count tokens that the device has written; it counts its own ``lengths`` itself."""
        self._held[slot] += tokens

    def nbytes(self) -> int:
        """Bytes of what all slots hold."""
        total = 0
        for index, layer in enumerate(self.layers):
            token = 2 * layer.keys.shape[2] * layer.keys.shape[3] * layer.keys.element_size()
            limit = None if self._arch.is_global(index) else self._arch.sliding_window - 1
            total += token * sum(h if limit is None else min(h, limit) for h in self._held)
        return total


def positions(lengths: Tensor, slots: Tensor, tokens: int) -> Tensor:
    """Positions ``[batch * tokens]`` of new tokens behind those of each slot."""
    steps = torch.arange(tokens, dtype=torch.int32, device=lengths.device)
    return (lengths[slots.long()][:, None] + steps).flatten()
