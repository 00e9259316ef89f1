"""How a matrix product is cut up for the GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """One way to run a kernel; the build measures several and the manifest records the quickest.

    Args:
        rows: tokens of a block.
        columns: output channels of a block.
        depth: of the summed dimension, loaded at a time.
        warps: of 32 threads each.
        stages: loads in flight.
    """

    rows: int
    columns: int
    depth: int
    warps: int = 4
    stages: int = 3
