"""Single values of a configuration: each is what its key takes, or :class:`FieldError` names the key."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_diffgemma.errors import require

_MOST = 2**31 - 1  # of what is counted


def folder(field: str, value: Any) -> Path:
    """A path that must be given."""
    good = value is not None and str(value).strip() != ""
    require(good, field=field, value=value, allowed="a path", fix=f"pass {field}=PATH")
    return Path(str(value))


def threads(value: Any) -> int:
    """CPU threads of a process: more than there are CPUs would only wait for each other."""
    cpus = os.cpu_count() or 1
    good = is_number(value) and isinstance(value, int) and 1 <= value <= cpus
    allowed = f"an integer from 1 to {cpus}, the CPUs of this machine; or null"
    require(good, field="threads", value=value, allowed=allowed, fix="pass threads=1, or leave it out")
    return int(value)


def path(value: Any) -> Path | None:
    """A path, or None."""
    return None if value is None else Path(str(value))


def count(field: str, value: Any, least: int = 1, most: int = _MOST) -> int:
    """An integer of a range."""
    good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    meant = int(value) if isinstance(value, float) and value.is_integer() and least <= value <= most else least
    allowed = f"an integer from {least} to {most}"
    require(good, field=field, value=value, allowed=allowed, fix=f"pass {field}={meant}")
    return int(value)


def number(field: str, value: Any, least: float, most: float) -> float:
    """A finite number of a range."""
    good = is_number(value) and least <= value <= most
    above = f"a number > 0 ({least:g} or more)" if least else "a number >= 0"
    require(good, field=field, value=value, allowed=f"{above}, at most {most:g}", fix=f"pass {field}=NUMBER")
    return float(value)


def is_number(value: Any) -> bool:
    """Whether a value is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def flag(field: str, value: Any) -> bool:
    """True or false."""
    require(isinstance(value, bool), field=field, value=value, allowed="true or false", fix=f"pass {field}=true")
    return bool(value)


def one_of(field: str, value: Any, allowed: Sequence[str]) -> str:
    """One of some words."""
    require(value in allowed, field=field, value=value, allowed=", ".join(allowed), fix=f"pass {field}={allowed[0]}")
    return str(value)
