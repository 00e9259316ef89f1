"""A run's folder: what of it is ours, who uses it, and where an older run's files go."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.files import is_lock, locked, regular_text, some, write_json
from nemo_diffgemma.training.checkpoint_files import CHECKPOINTS
from nemo_diffgemma.training.signals import Stopped

MARKER = "run.json"  # what the run is: written first, so that a folder with it is one of ours
CURVE = "training.json"
LOGS = "nemo"
_LOCK = ".lock"
# where no model may lie: the run writes or moves them; data: the demo task's
OWN_NAMES = re.compile(rf"{CHECKPOINTS}|{LOGS}|data|{re.escape(CURVE)}|{re.escape(MARKER)}|run_\d+|{re.escape(_LOCK)}")
# what a run writes in these folders; other files in them are somebody's, and stay
_OWN_INSIDE = {
    LOGS: re.compile(
        r"nemo_.*\.txt|lightning_logs\.txt|cmd-args\.log|git-info\.log|hparams\.yaml|events\.out\.tfevents\..*"
    ),
    CHECKPOINTS: re.compile(r"step=\d+\.(ckpt|json)(\.damaged-\d+)?"),
}
_CLAIMED = {"begun": False}  # the marker of a run that has not begun
_SAID = {"model", "seed", "data.train"}  # what the marker of one that has begun says, among other things


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Make the folder when it is not there, and keep every other run out of it.

    A run that is refused, or stopped before its first training checkpoint, leaves nothing where there was nothing.

    Raises:
        FieldError: when the folder holds what no run wrote, or another run is using it.
    """
    _check_ours(run)

    def busy() -> None:
        raise FieldError(
            field="run",
            value=str(run),
            allowed="a folder that no other run is using now",
            fix="wait for it, or pass run=DIR",
        )

    def unsupported() -> None:
        print(f"warning: {run}: this file system has no locks; start no other run in it now")

    with locked(run / _LOCK, busy, unsupported):
        new = [p.name for p in run.iterdir()] == [_LOCK]
        try:
            yield
        except (FieldError, Stopped):
            if new and not (run / CHECKPOINTS).exists():
                _remove_own(run)
            raise


def _remove_own(run: Path) -> None:
    for name in (MARKER, CURVE):
        (run / name).unlink(missing_ok=True)
    for name in (LOGS, "data"):
        shutil.rmtree(run / name, ignore_errors=True)


def _check_ours(run: Path) -> None:
    if not run.exists():
        return
    require(
        run.is_dir(), field="run", value=str(run), allowed="a folder, or a path where nothing is", fix="pass run=DIR"
    )
    found = sorted(p.name for p in run.iterdir() if p.name != _LOCK or not is_lock(p))
    ours = not found or (_is_ours(run / MARKER) and _LOCK not in found)
    allowed = "a new or empty folder, or one of an earlier run"
    require(
        ours,
        field="run",
        value=f"{run} holds {some(found)}",
        allowed=allowed,
        fix=f"pass run={run / 'run'}; nothing was changed",
    )


def _is_ours(marker: Path) -> bool:
    """Whether a run wrote this file: others have one of this name, too."""
    try:
        found = json.loads(regular_text(marker))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and (found == _CLAIMED or found.keys() >= _SAID)


def read(run: Path) -> dict[str, Any]:
    """What an earlier run wrote of itself; nothing when there was none, or it was killed before it began.

    Args:
        run: a folder that is held.
    """
    path = run / MARKER
    found = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else _CLAIMED
    return {} if found == _CLAIMED else found


def claim(run: Path) -> None:
    """Mark the folder as ours before anything else is written into it."""
    if not (run / MARKER).exists():
        write_json(run / MARKER, _CLAIMED)


def begin(run: Path, about: dict[str, Any]) -> None:
    """Begin a new run: an earlier run's own files move to ``run_0``, ``run_1``, ... inside the folder.

    Args:
        about: what :func:`read` shall give.
    """
    if (run / CHECKPOINTS).is_dir():
        number = next(n for n in count() if not (run / f"run_{n}").exists())
        aside = run / f"run_{number}"
        aside.mkdir()
        # copied, not moved: a folder without it would not be known as ours if this is interrupted
        shutil.copyfile(run / MARKER, aside / MARKER)
        if (run / CURVE).exists():
            (run / CURVE).rename(aside / CURVE)
        for name, own in _OWN_INSIDE.items():
            _move_own(run / name, aside / name, own)
    write_json(run / MARKER, about)


def _move_own(folder: Path, aside: Path, own: re.Pattern[str]) -> None:
    """Move what a run wrote in ``folder`` to ``aside``, and the folder with it if that is all."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if all(own.fullmatch(name) for name in names):
        if folder.is_dir():
            folder.rename(aside)
        return
    aside.mkdir()
    for name in names:
        if own.fullmatch(name):
            (folder / name).rename(aside / name)
