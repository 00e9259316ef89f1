"""What makes two runs the same experiment: a run may go on with another learning rate, not with other data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.training.data import Example
from nemo_diffgemma.training.settings import TrainConfig

# Keys whose change makes another experiment, or a training checkpoint that cannot be read, with what to do instead.
_FIXED = {
    "model": "the weights have its shapes",
    "init_from": "the run began from its weights",
    "seed": "the order of the examples follows from it",
    "data.train": "the run is in the middle of its examples",
    "data.batch": "the order of the examples follows from it",
    "parallel.name": "a training checkpoint of one process and one of several differ in form",
    "optim.optimizer": "a training checkpoint has one optimizer's state",
    "optim.train_router": "the optimizer's state covers other weights",
}
# Settings that are kept as short hashes, which say nothing to a reader.
_HASHED = ("model", "init_from", "data.train")


def describe(config: TrainConfig, examples: Sequence[Example]) -> dict[str, Any]:
    """The run's settings by their keys, JSON-ready; data, model and first weights as short hashes.

    Args:
        config: of the run.
        examples: training examples as token ids, so that the data, its tokenizer and how it is cut all count.
    """
    return {
        "model": _hash(config.arch.as_dict()),
        "init_from": None if config.init_from is None else _weights(config.init_from),
        "seed": config.seed,
        "data.train": _hash([[e.prompt, e.response] for e in examples]),
        "data.batch": config.data.batch,
        **{f"parallel.{name}": value for name, value in asdict(config.parallel).items()},
        **{f"optim.{name}": value for name, value in json.loads(json.dumps(asdict(config.optim))).items()},
    }


def changes(before: dict[str, Any], now: dict[str, Any], run: Path) -> list[str]:
    """What differs from the settings a run began with, ``key: old -> new``, all of it possible.

    Raises:
        FieldError: when a setting differs that makes another experiment.
    """
    found = []
    for key, value in now.items():
        old = before.get(key, value)
        if old == value:
            continue
        if key in _FIXED:
            fix = f"pass resume=false to begin anew in it, or run=DIR for a folder of its own; {run} is unchanged"
            what, other = ("the same", "another one") if key in _HASHED else (old, value)
            raise FieldError(field=key, value=other, allowed=f"{what} as when {run} began: {_FIXED[key]}", fix=fix)
        found.append(f"{key}: {old} -> {value}")
    return found


def _weights(directory: Path) -> str:
    """By config.json and the weight files' names and sizes: hashing 50 GB would take minutes at every start."""
    files = {path.name: path.stat().st_size for path in directory.glob("*.safetensors")}
    return _hash([(directory / "config.json").read_text(encoding="utf-8"), files])


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
