"""The texts of a vocabulary as a trie, level by level, in arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Level:
    """The nodes of one depth.

    Args:
        parent: ``[nodes]`` int32: the node of the level above; zero, the root, on the first.
        byte: ``[nodes]`` uint8: what leads from there to here.
        ends: ``[tokens]`` int32: the nodes where tokens end.
        tokens: ``[tokens]`` int32: the ids of those tokens.
    """

    parent: NDArray[np.int32]
    byte: NDArray[np.uint8]
    ends: NDArray[np.int32]
    tokens: NDArray[np.int32]


class TokenTrie:
    """Of all tokens that have a text.

    Args:
        texts: by id; None or empty for those without.
    """

    def __init__(self, texts: Sequence[bytes | None]):
        self.size = len(texts)
        order = sorted((text, number) for number, text in enumerate(texts) if text)
        data = np.frombuffer(b"".join(text for text, _ in order), np.uint8)
        tokens = np.array([number for _, number in order], np.int32)
        lengths = np.array([len(text) for text, _ in order], np.int64)
        offsets = np.cumsum(lengths) - lengths
        self.levels: list[Level] = []
        rows = np.arange(len(order))
        nodes = np.zeros(len(order), np.int64)  # of each row, on the level above
        while True:
            depth = len(self.levels)
            longer = lengths[rows] > depth
            rows, nodes = rows[longer], nodes[longer]
            if not len(rows):
                break
            bytes_ = data[offsets[rows] + depth]
            keys = nodes * 256 + bytes_
            first = np.append(True, keys[1:] != keys[:-1])
            here = np.cumsum(first) - 1
            ends = lengths[rows] == depth + 1
            self.levels.append(
                Level(nodes[first].astype(np.int32), bytes_[first], here[ends].astype(np.int32), tokens[rows[ends]])
            )
            nodes = here

    @property
    def nodes(self) -> int:
        """How many nodes there are without the root."""
        return sum(len(level.byte) for level in self.levels)
