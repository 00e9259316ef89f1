"""The files of a tokenizer, by name: which of them there are, and whether each is more than its name."""

from __future__ import annotations

import os
from pathlib import Path

from nemo_diffgemma.errors import require

# Everything beside the weights that belongs to a checkpoint and travels with it.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
)
_FIX = "download or export the checkpoint again, or remove it"


def tokenizer_files(directory: Path, key: str = "checkpoint") -> list[Path]:
    """Paths of the tokenizer's files that there are; empty for a checkpoint without one.

    Args:
        directory: of the checkpoint, or of a tokenizer alone.
        key: how the user named it.

    Raises:
        FieldError: when there is no more of one than its name, as of a link into a cache that was emptied: without it
            the tokenizer would be another, or have no template.
    """
    paths = [directory / name for name in TOKENIZER_FILES if os.path.lexists(directory / name)]
    for path in paths:
        check_file(path, f"{key}:{path.name}")
    return paths


def check_file(path: Path, field: str) -> None:
    """Refuse what is no regular file, and no link to one."""
    what = "a folder" if os.path.isdir(path) else "no regular file" if os.path.exists(path) else "a link to nothing"
    require(os.path.isfile(path), field=field, value=f"{path}: {what}", allowed="a file, or nothing", fix=_FIX)
