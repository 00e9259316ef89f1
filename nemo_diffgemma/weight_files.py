"""Which safetensors file of a checkpoint holds which tensor: what its index says, checked before a number is read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.files import some
from nemo_diffgemma.json_files import read_object

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
REFETCH = "download or export the checkpoint again"
Shape = tuple[int, ...]
_TOGETHER = 2**24  # numbers of two tensors that are compared at a time


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Args:
        file: that it lies in.
        name: that it has there.
        dtype: as safetensors spells it (``BF16``).
        shape: its shape.
    """

    file: Path
    name: str
    dtype: str
    shape: Shape

    def read(self) -> torch.Tensor:
        """All of it."""
        with safe_open(self.file, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(self.name)
        return tensor

    def parts(self) -> Iterator[torch.Tensor]:
        """Some rows after another, so that little of it is held at a time."""
        with safe_open(self.file, "pt") as file:
            rows = file.get_slice(self.name)
            step = max(1, _TOGETHER // max(1, math.prod(self.shape[1:])))
            yield from (rows[start : start + step] for start in range(0, self.shape[0], step))

    def equals(self, other: Stored) -> bool:
        """Whether both hold the same numbers, whatever dtype they are stored in."""
        if self.shape != other.shape:
            return False
        if not self.shape:
            return bool(self.read().double() == other.read().double())
        import torch

        both = zip(self.parts(), other.parts(), strict=True)
        return all(torch.equal(a, b) if a.dtype == b.dtype else torch.equal(a.double(), b.double()) for a, b in both)


@dataclass(frozen=True)
class Weights:
    """A checkpoint's tensors.

    Args:
        tensors: by name.
        passed_over: names of what lies in its files and is in no entry of its index, or in another file's.
    """

    tensors: Mapping[str, Stored]
    passed_over: tuple[str, ...]


def find_weights(directory: Path) -> Weights:
    """Look for a checkpoint's tensors where its index says, or in its only file.

    Raises:
        FieldError: when a file is missing, unreadable or truncated, the index is broken or names what is not there, or
            there are both an index and another file of weights.
    """
    where = _index(directory)
    single = directory / SINGLE
    if where is None:
        require(
            single.is_file(),
            field="checkpoint",
            value=str(directory),
            allowed=f"{SINGLE} or {INDEX} in it",
            fix=REFETCH,
        )
        return Weights(read_header(single), ())
    if single.is_file() and SINGLE not in where.values():
        found, fix = f"{SINGLE} and {INDEX}, which does not name it", "remove the one that is out of date"
        raise FieldError(field="checkpoint", value=f"{directory}: {found}", allowed="one of them", fix=fix)
    tensors: dict[str, Stored] = {}
    passed_over: list[str] = []
    for file in sorted(set(where.values())):
        require(
            os.path.isfile(directory / file),  # false for a name that no file can have, where Path raises
            field="checkpoint",
            value=file,
            allowed=f"every shard {INDEX} names",
            fix=REFETCH,
        )
        held = read_header(directory / file)
        promised = [name for name, place in where.items() if place == file]
        lost = sorted(set(promised) - held.keys())
        require(
            not lost,
            field="checkpoint:missing tensor",
            value=some(lost),
            allowed=f"in {file}, where {INDEX} has it",
            fix=REFETCH,
        )
        tensors |= {name: held[name] for name in promised}
        passed_over += sorted(held.keys() - set(promised))
    return Weights(tensors, tuple(passed_over))


def read_header(path: Path, field: str = "", fix: str = REFETCH) -> dict[str, Stored]:
    """What a safetensors file holds; of its content only the header is read.

    Args:
        path: of the file.
        field: what messages call it (default: ``checkpoint:`` and its name).
        fix: what to do when it is not whole.

    Raises:
        FieldError: when it is not readable or not whole.
    """
    field = field or f"checkpoint:{path.name}"
    # safetensors writes files that their owner alone may read: another user's, as in a container, stops here
    readable = f"chmod -R a+rX {path.parent}, or run as their owner"
    require(
        os.access(path, os.R_OK),
        field=field,
        value=f"not readable for user {os.getuid()}",
        allowed="a readable file",
        fix=readable,
    )
    try:
        with safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  no dict
            return {n: Stored(path, n, str(s.get_dtype()), tuple(s.get_shape())) for n, s in slices.items()}
    except SafetensorError as error:
        found = f"{path.stat().st_size} bytes: {str(error).rpartition('header: ')[2]}"
        raise FieldError(field=field, value=found, allowed="a whole safetensors file", fix=fix) from None


def _index(directory: Path) -> dict[str, str] | None:
    """Tensor to the file that it is in, below ``directory``; None where there is no index."""
    path = directory / INDEX
    if not os.path.lexists(path):
        return None
    allowed = 'a JSON object with "weight_map": {tensor: file}'
    where = read_object(path, f"checkpoint:{INDEX}", REFETCH).get("weight_map")
    require(
        isinstance(where, dict) and bool(where), field=f"checkpoint:{INDEX}", value=where, allowed=allowed, fix=REFETCH
    )
    assert isinstance(where, dict)
    for name, file in where.items():
        # by its spelling: a file may be a link to another folder, as in Hugging Face's cache
        inside = (
            isinstance(file, str) and file and not Path(file).is_absolute() and ".." not in PurePosixPath(file).parts
        )
        require(
            bool(inside),
            field=f"checkpoint:{INDEX}:{name}",
            value=file,
            allowed="a file in the checkpoint's directory",
            fix=REFETCH,
        )
    return where
