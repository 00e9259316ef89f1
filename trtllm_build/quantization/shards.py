"""Sharded safetensors, written tensor by tensor: names, dtypes and shapes are known beforehand, so headers go first.

``safetensors.torch.save_file`` wants a whole shard in memory; this holds one tensor. The format is that of
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nemo_diffgemma.files import new_file, write_json
from nemo_diffgemma.weight_files import INDEX, Shape

# what safetensors calls a dtype, by torch's
DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.uint8: "U8",
}
_ITEM_BYTES = {name: dtype.itemsize for dtype, name in DTYPES.items()}
_ALIGNMENT = 8


@dataclass(frozen=True)
class ShardEntry:
    """A tensor that will be written.

    Args:
        name: its name in the file.
        dtype: one of the values of ``DTYPES``.
        shape: its shape.
    """

    name: str
    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


def write_shards(
    directory: Path,
    entries: Sequence[ShardEntry],
    tensors: Iterable[tuple[str, torch.Tensor]],
    max_bytes: int,
    report: Callable[[str], None],
) -> None:
    """Write ``model-00001-of-000NN.safetensors`` and on, and their index, into ``directory``.

    Args:
        entries: what will be written, in order.
        tensors: the same names in the same order with their tensors; each may be freed once the next is asked for.
        max_bytes: a shard is closed before its data would exceed this.
        report: called with a line for every shard written.
    """
    shards = list(_split(entries, max_bytes))
    stream = iter(tensors)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(directory / file, shard, stream)
        weight_map |= {entry.name: file for entry in shard}
        report(f"{file}: {len(shard)} tensors, {sum(e.nbytes for e in shard) / 1e9:.2f} GB")
    assert next(stream, None) is None, "more tensors than entries"
    total = sum(entry.nbytes for entry in entries)
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write one file, whole or not at all; its mode is that of any new file, which safetensors' own would not be."""
    entries = [ShardEntry(name, DTYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items()]
    _write(path, entries, iter(tensors.items()))


def _split(entries: Sequence[ShardEntry], max_bytes: int) -> Iterator[list[ShardEntry]]:
    shard: list[ShardEntry] = []
    size = 0
    for entry in entries:
        if shard and size + entry.nbytes > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append(entry)
        size += entry.nbytes
    yield shard


def _write(path: Path, shard: list[ShardEntry], stream: Iterator[tuple[str, torch.Tensor]]) -> None:
    """One shard, from the next ``len(shard)`` tensors of the stream."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    # wide dtypes first: readers view the mapped file as the dtype, which has to begin at a multiple of its size
    for entry in sorted(shard, key=lambda e: -_ITEM_BYTES[e.dtype]):
        offsets[entry.name] = end
        end += entry.nbytes
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offsets[entry.name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with new_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        begin = file.tell()
        for entry in shard:
            name, tensor = next(stream)
            found = ShardEntry(name, DTYPES[tensor.dtype], tuple(tensor.shape))
            assert found == entry, f"{found} where {entry} was announced"
            file.seek(begin + offsets[name])
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
