"""Whether what a run writes will fit, and may be written, asked before its first step."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

from nemo_diffgemma.errors import FieldError, require

# Weights, AdamW's two moments: bytes per trained parameter in a training checkpoint; weights alone of a frozen one.
_TRAINED, _FROZEN = 12, 4
_REST = 64 * 2**20  # logs, curve, tokenizer, headers


def checkpoint_bytes(total: int, trained: int) -> int:
    """Size of one training checkpoint: ``total`` parameters in float32, ``trained`` of them with AdamW's moments."""
    return trained * _TRAINED + (total - trained) * _FROZEN


def check_space(run: Path, run_bytes: int, output: Path, output_bytes: int) -> None:
    """Ask that both folders can be written and that their volumes have room for what is still to come.

    Args:
        run: the run's folder.
        run_bytes: what will be written there on top of what is there.
        output: the model's folder, which need not exist; the new model is written beside an old one.
        output_bytes: size of the model.

    Raises:
        FieldError: naming the folder, what is free and what is needed.
    """
    needed: dict[int, int] = defaultdict(int)
    places = {"run": (run, run_bytes + _REST), "output": (output.resolve().parent, output_bytes + _REST)}
    volumes = {}
    for field, (folder, size) in places.items():
        existing = _writable(field, folder)
        volumes[field] = existing
        needed[existing.stat().st_dev] += size
    for field, existing in volumes.items():
        free, wanted = shutil.disk_usage(existing).free, needed[existing.stat().st_dev]
        folder = places[field][0]
        fix = f"free {_size(wanted - free)}, or pass {field}=DIR on another volume"
        require(free >= wanted, field, f"{folder}: {_size(free)} free", f"{_size(wanted)} for this run", fix)


def _writable(field: str, folder: Path) -> Path:
    """The nearest folder above (or at) ``folder`` that exists, after writing a file there."""
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            return existing
    except OSError as error:
        allowed = f"a folder that user {os.getuid()} may write to"
        raise FieldError(field, f"{folder}: {error.strerror}", allowed, f"pass {field}=DIR") from None


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
