"""Training checkpoints on disk: their names, the list of hashes beside each, and whether one is as it was written."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from nemo_diffgemma.files import file_entries, listed_files, write_json
from nemo_diffgemma.waiting import waiting

CHECKPOINTS = "checkpoints"


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the training checkpoint of a step lies: a file of one process, a folder of several."""
    return run / CHECKPOINTS / f"step={step}.ckpt"


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the training checkpoints there are, in order; what is half written has another name."""
    names = (re.fullmatch(r"step=(\d+)\.ckpt", path.name) for path in (run / CHECKPOINTS).glob("step=*.ckpt"))
    return sorted(int(match[1]) for match in names if match)


def newest_step(run: Path) -> int | None:
    """Step of the newest training checkpoint; None when there is none."""
    return max(checkpoint_steps(run), default=None)


def put_checkpoint(written: Path, path: Path) -> None:
    """Give a training checkpoint its name, once the list of its files lies beside that: no process finds one without.

    Args:
        written: the whole checkpoint, file or folder, beside ``path``.
        path: its name; what is there is replaced.
    """
    write_json(_list_of(path), {"files": _files(written, path.name)})
    if path.is_dir():
        shutil.rmtree(path)
    os.replace(written, path)


def damage(path: Path) -> str | None:
    """What of a training checkpoint is not as it was written; None when all of it is. Reads every byte of it."""
    place = _list_of(path)
    listed = listed_files(place.parent, place.name)
    if listed is None:
        return f"{place.name}, which lists its files, is missing or damaged"
    found = _files(path, path.name)
    for name, entry in listed.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != entry:
            size = entry.get("bytes") if isinstance(entry, dict) else None
            bytes_ = found[name]["bytes"]
            return f"{name} is damaged: " + ("other bytes" if bytes_ == size else f"{bytes_} bytes, not {size}")
    more = sorted(found.keys() - listed.keys())
    return f"{more[0]} is not of it" if more else None


def remove_checkpoint(path: Path) -> None:
    """Remove a training checkpoint, file or folder, and its list."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    _list_of(path).unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Give a damaged training checkpoint a name under which no run looks for one; returns that."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    _list_of(path).unlink(missing_ok=True)
    return aside


def remove_unfinished(run: Path) -> None:
    """Remove what a killed run left half written: it can be as large as all weights thrice."""
    folder = run / CHECKPOINTS
    for path in [*folder.glob(".step=*.ckpt.*.partial"), *folder.glob(".step=*.json.*.partial")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in folder.glob("step=*.json"):
        if not path.with_suffix(".ckpt").exists() and listed_files(folder, path.name) is not None:
            path.unlink()


def _list_of(path: Path) -> Path:
    return path.with_suffix(".json")


def _files(place: Path, name: str) -> dict[str, dict[str, Any]]:
    """``{path below the checkpoint's name: {"bytes": ..., "sha256": ...}}`` of a checkpoint that lies at ``place``."""
    size = sum(p.stat().st_size for p in (place, *place.rglob("*")) if p.is_file())
    with waiting("checking the training checkpoint", size) as tick:
        entries = file_entries(place, tick=tick)
    return {(Path(name) / below).as_posix(): entry for below, entry in entries.items()}
