"""How attention is cut up for the GPU."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_build.kernels.machine_code import SHARED_BYTES


@dataclass(frozen=True)
class AttentionTile:
    """One way to run the kernel.

    Args:
        rows: of a block: tokens times the query heads of a key-value head.
        keys: read at a time; divides ``PAGE``.
        channels: of the value that a block sums, at most. Scores are computed again for each part of a head, which
            costs arithmetic; a whole head of 512 costs registers.
        splits: of the keys.
        warps, stages: as in :class:`trtllm_build.kernels.tile.Tile`.
    """

    rows: int
    keys: int
    channels: int
    splits: int
    warps: int = 4
    stages: int = 2


TILES = (
    AttentionTile(32, 16, 512, splits=4, warps=8, stages=2),
    AttentionTile(32, 32, 512, splits=4, warps=8, stages=1),
    AttentionTile(64, 32, 512, splits=2, warps=8, stages=2),
    AttentionTile(64, 32, 512, splits=4, warps=8, stages=2),
    AttentionTile(128, 32, 256, splits=4, warps=8, stages=2),
    AttentionTile(64, 64, 256, splits=4, warps=8, stages=2),
    AttentionTile(128, 64, 256, splits=1, warps=8, stages=2),
    AttentionTile(128, 64, 256, splits=4, warps=8, stages=2),
)
"""The first fits every GPU; the build tries all on its own, for each kind of layer, and those that do not fit fail."""


def tiles_for(head_size: int, sm: int) -> tuple[AttentionTile, ...]:
    """Those of ``TILES`` whose blocks of bfloat16 queries, keys and values fit the shared memory of a GPU."""
    return tuple(t for t in TILES if _shared_bytes(t, head_size) <= SHARED_BYTES[sm])


def _shared_bytes(tile: AttentionTile, head_size: int) -> int:
    """An upper bound: some GPUs hold the queries in registers."""
    return 2 * (tile.rows * head_size + tile.stages * tile.keys * (head_size + min(tile.channels, head_size)))
