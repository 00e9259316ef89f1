"""Which training checkpoint a run goes on from."""

from __future__ import annotations

import re
from pathlib import Path

from nemo_diffgemma.errors import FieldError

DIRECTORY = "checkpoints"
FILE_NAME = "{step}"  # Lightning makes step=100.ckpt of it
# exp_manager's marker beside a checkpoint that is being written or removed
_UNFINISHED = "-unfinished"


def latest_checkpoint(run: Path) -> Path:
    """The newest finished training checkpoint of a run.

    A checkpoint appears under its name by a rename, so a run killed while writing one left only a partial beside the
    last good one.

    Raises:
        FieldError: when there is none.
    """
    found = {}
    for path in (run / DIRECTORY).glob("step=*.ckpt"):
        match = re.fullmatch(r"step=(\d+)\.ckpt", path.name)
        if match and not path.with_name(path.stem + _UNFINISHED).exists():
            found[int(match[1])] = path
    if not found:
        raise FieldError("resume", True, f"a training checkpoint in {run / DIRECTORY}", "pass resume=false, or run=DIR")
    return found[max(found)]
