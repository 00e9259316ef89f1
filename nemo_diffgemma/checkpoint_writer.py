"""Writing a Hugging Face-layout checkpoint, so that a crash loses nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import DECODER, INDEX, Checkpoint


def write_checkpoint(
    directory: str | Path,
    arch: Architecture,
    tensors: Mapping[str, torch.Tensor],
    generation_config: Mapping[str, Any],
    tokenizer_files: Iterable[Path] = (),
    conversations: Mapping[str, Iterable[str]] | None = None,
    max_shard_bytes: int = 5 * 2**30,
) -> Path:
    """Write a whole checkpoint beside ``directory``, check it, then put it in place with one rename.

    Args:
        tensors: every text and vision tensor, by Hugging Face name.
        generation_config: contents of ``generation_config.json``.
        tokenizer_files: files copied in by name.
        conversations: :data:`HELD_OUT` and :data:`CALIBRATION` to their lines, JSON each.
        max_shard_bytes: a shard is closed before it would exceed this many bytes.

    Returns:
        ``directory``.

    Raises:
        FieldError: when ``tensors`` are not exactly those ``arch`` asks for.
    """
    directory = Path(directory)
    temporary = directory.with_name(directory.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    dtype = str(tensors[f"{DECODER}norm.weight"].dtype).removeprefix("torch.")
    _write_json(temporary / "config.json", arch.to_hf(dtype))
    _write_json(temporary / "generation_config.json", dict(generation_config))
    for path in tokenizer_files:
        shutil.copyfile(path, temporary / path.name)
    for name, lines in (conversations or {}).items():
        (temporary / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    _write_shards(temporary, tensors, max_shard_bytes)
    Checkpoint(temporary)
    replace_directory(temporary, directory)
    return directory


def replace_directory(source: Path, target: Path) -> None:
    """Move ``source`` to ``target``; what was there stays until the new one is in place."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    os.replace(source, target)
    shutil.rmtree(old, ignore_errors=True)


def _write_shards(directory: Path, tensors: Mapping[str, torch.Tensor], max_bytes: int) -> None:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > max_bytes and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({n: tensors[n].contiguous() for n in names}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    total = sum(t.nbytes for t in tensors.values())
    _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
