"""Writing a Hugging Face-layout checkpoint, so that a crash loses nothing and nobody else's files are replaced."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import DECODER, INDEX, Checkpoint
from nemo_diffgemma.files import (
    file_entries,
    follow_umask,
    partial_directory,
    put_in_place,
    write_json,
    write_text,
)
from nemo_diffgemma.hf_config import write_config
from nemo_diffgemma.machine import writing

# Written into every checkpoint: how it was trained, and which files are ours to replace.
MARKER = "training.json"


def write_checkpoint(
    directory: str | Path,
    arch: Architecture,
    tensors: Mapping[str, torch.Tensor],
    generation_config: Mapping[str, Any],
    files: Mapping[str, Path] | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    training: Mapping[str, Any] | None = None,
    writer: str = "",
    max_shard_bytes: int = 5 * 2**30,
) -> Path:
    """Write a whole checkpoint beside ``directory``, check it, then put it in place with one rename.

    Args:
        directory: nothing, an empty folder, or a checkpoint that this function wrote and nobody has added to.
        arch: shapes of the model.
        tensors: every text and vision tensor, by Hugging Face name.
        generation_config: contents of ``generation_config.json``.
        files: files to copy, by their path in the checkpoint; those that this function writes itself win.
        config: contents of ``config.json``; those that ``arch`` gives where not given.
        texts: texts to write, by file name.
        training: contents of ``training.json`` beside the list of files.
        writer: who writes; a writer that was killed finds and replaces what it had left unfinished.
        max_shard_bytes: a shard is closed before it would exceed this many bytes.

    Returns:
        ``directory``.

    Raises:
        FieldError: when ``tensors`` are not exactly those ``arch`` asks for, or ``directory`` holds what is not ours.
        OSError: naming ``directory``, when the machine refuses; what was there stays.
    """
    directory = Path(directory)
    partial = partial_directory(directory, writer)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(directory):
            partial.mkdir(parents=True)
            for name, path in (files or {}).items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, partial / name)
            for name, text in (texts or {}).items():
                write_text(partial / name, text)
            dtype = str(tensors[f"{DECODER}norm.weight"].dtype).removeprefix("torch.")
            write_json(partial / "config.json", write_config(arch, dtype) if config is None else dict(config))
            write_json(partial / "generation_config.json", dict(generation_config))
            _write_shards(partial, tensors, max_shard_bytes)
            Checkpoint(partial)
            write_json(partial / MARKER, {**(training or {}), "files": file_entries(partial, MARKER)})
            put_in_place(partial, directory, MARKER, "output")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # the room it took may be what is lacking
        raise
    return directory


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
        follow_umask(directory / file)
        weight_map |= dict.fromkeys(names, file)
    total = sum(t.nbytes for t in tensors.values())
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
