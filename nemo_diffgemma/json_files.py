"""JSON objects from outside (checkpoints, bundles), read as strictly as they will be written again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_diffgemma.errors import FieldError, require

_DEEPEST = 100  # brackets in each other: what reads and copies them afterwards may call itself once for each
_LARGEST = 2**26  # bytes; the index of the largest checkpoint there is takes a tenth of it


def read_object(path: Path, field: str, fix: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    NaN and infinity are refused, as bare words and as numbers too large for a float: JSON has neither, and what is read
    here is written again. (transformers reads them, and writes ``{"__float__": "NaN"}`` for them, which is an object
    like any other.) So is a name that stands twice in one object, of which every reader takes another.

    Args:
        path: of the file.
        field: what messages call it.
        fix: what to do when it is not such a file.

    Raises:
        FieldError: when it is missing, a folder, not readable, not UTF-8, not JSON or no object; naming the key where
            one is at fault.
    """

    def refuse(value: str) -> FieldError:
        return FieldError(field=field, value=f"{path}: {value}", allowed="a JSON object", fix=fix)

    try:
        if path.exists() and not path.is_file():
            raise refuse("a folder" if path.is_dir() else "no regular file")
        if path.is_file() and not os.access(path, os.R_OK):
            raise refuse(f"not readable for user {os.getuid()}")
        if path.is_file() and path.stat().st_size > _LARGEST:
            raise refuse(f"{path.stat().st_size} bytes, more than {_LARGEST}")
        text = path.read_bytes().decode("utf-8")
        found = json.loads(text, object_pairs_hook=_without_repeats)
    except FieldError:
        raise
    except _RepeatedError as error:
        raise FieldError(
            field=f"{field}:{error}", value="set twice", allowed="every name once in an object", fix=f"correct {path}"
        ) from None
    except OSError as error:
        raise refuse(str(error.strerror)) from None
    except RecursionError:
        raise refuse("brackets are too deep in each other") from None
    except ValueError as error:
        raise refuse(str(error)) from None
    if not isinstance(found, dict):
        raise refuse(f"{type(found).__name__}")
    for key, value, depth in _walk(found):
        require(
            depth <= _DEEPEST,
            field=field,
            value=f"{path}: more than {_DEEPEST} brackets in each other",
            allowed="a JSON object",
            fix=fix,
        )
        require(
            not isinstance(value, float) or math.isfinite(value),
            field=f"{field}:{key}",
            value=value,
            allowed="what JSON has: finite numbers, or null",
            fix=f"correct {path}",
        )
    return found


class _RepeatedError(Exception):
    """A name that an object has twice."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedError(next(name for name in names if names.count(name) > 1))
    return found


def _walk(found: Any) -> Iterator[tuple[str, Any, int]]:
    """Every value below an object: its dotted key, itself, and in how many brackets it stands."""
    todo: list[tuple[str, Any, int]] = [("", found, 0)]
    while todo:
        key, value, depth = todo.pop()
        yield key, value, depth
        if depth > _DEEPEST:
            return
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        todo += [(f"{key}.{name}" if key else str(name), item, depth + 1) for name, item in inside]
