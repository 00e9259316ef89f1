"""The checkpoint that a run fine-tunes: what of it travels with the trained model, and whether it can."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from nemo_diffgemma.checkpoint import CALIBRATION, HELD_OUT, TOKENIZER_FILES, Checkpoint
from nemo_diffgemma.checkpoint_writer import MARKER
from nemo_diffgemma.errors import require
from nemo_diffgemma.tokenizer_names import check_file, tokenizer_files

# Of a base checkpoint, at any depth: weights in any form, which are those of another model by then.
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.safetensors.index.json", "*.bin.index.json")
# At its top: what this project writes itself.
_OURS = (MARKER, CALIBRATION, HELD_OUT)
# No folder may have such a name: the model has a file there.
_WRITTEN = (*_WEIGHTS, *_OURS, "config.json", "generation_config.json", *TOKENIZER_FILES)


def files_that_travel(base: Path | None, tokenizer: Path) -> dict[str, Path]:
    """Files that go along with the weights: all of the base's but its weights, and the tokenizer's.

    Args:
        base: the checkpoint that is fine-tuned; None for a model that starts from nothing.
        tokenizer: directory of the tokenizer, which may be ``base``.

    Returns:
        Path in the trained checkpoint -> file.
    """
    files: dict[str, Path] = {}
    if base is not None:
        ours = _OURS if tokenizer == base else (*_OURS, *TOKENIZER_FILES)
        for path in _below(base):
            relative = path.relative_to(base)
            if str(relative) not in ours and not any(relative.match(pattern) for pattern in _WEIGHTS):
                files[relative.as_posix()] = path
    return files | {path.name: path for path in tokenizer_files(tokenizer, "data.tokenizer")}


def _below(base: Path) -> Iterator[Path]:
    """Files below a folder, those in linked folders too, but hidden ones; a folder that a link leads back to, once."""
    seen = set[str]()
    for folder, folders, names in os.walk(base, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder) / name for name in names if not name.startswith("."))


def check_base(base: Path, tokenizer: Path) -> None:
    """Refuse, before anything runs, a base whose files could not be read or written again at the end of the run.

    Raises:
        FieldError: when the checkpoint is not whole, a file of it that travels cannot be read, or a folder in it has
            the name of a file that the trained model has.
    """
    checkpoint = Checkpoint(base)
    _ = checkpoint.generation_config
    for path in sorted(base.rglob("*")):
        relative = path.relative_to(base)
        if path.is_dir() and not _hidden(relative):
            written = len(relative.parts) == 1 and any(relative.match(pattern) for pattern in _WRITTEN)
            require(
                not written,
                field=f"init_from:{relative}",
                value=f"{path}: a folder",
                allowed="a file, or nothing: the trained model has a file of that name",
                fix=f"move {path} elsewhere",
            )
            _check_readable(path, os.R_OK | os.X_OK, "init_from", relative)
    for name, path in files_that_travel(base, tokenizer).items():
        key = "init_from" if base in path.parents else "data.tokenizer"
        check_file(path, f"{key}:{name}")
        _check_readable(path, os.R_OK, key, PurePath(name))


def _check_readable(path: Path, mode: int, key: str, name: PurePath) -> None:
    require(
        os.access(path, mode),
        field=f"{key}:{name}",
        value=f"{path}: not readable for user {os.getuid()}",
        allowed="a readable one: it goes along with the trained model",
        fix=f"chmod -R a+rX {path}, or move it elsewhere",
    )


def _hidden(relative: PurePath) -> bool:
    return any(part.startswith(".") for part in relative.parts)
