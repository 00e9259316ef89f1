"""Paths on the command line, whatever characters they have: quoted, before Hydra reads its own grammar into them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from nemo_diffgemma.errors import FieldError, require

# Keys of both command lines whose values are paths, and those of them that take several.
PATHS = frozenset({"run", "output", "init_from", "data.tokenizer", "checkpoint", "out", "calibration", "held_out"})
SEVERAL = frozenset({"data.train", "data.validation"})
WRITTEN = frozenset({"run", "output", "out"})
# Bytes of a name: what is written has longer names for a while, before it takes its own.
_LONGEST, _LONGEST_WRITTEN = 255, 200
_LONGEST_PATH = 4096 - 512  # bytes of a whole path, with what is written below it
# An item of a list: in quotes, or up to the next comma.
_ITEM = re.compile(r"""(\s*'(?:[^'\\]|\\.)*'\s*|\s*"(?:[^"\\]|\\.)*"\s*|[^,]*)(?:,|$)""")


def quote_paths(overrides: Sequence[str]) -> list[str]:
    """Overrides in which every path is quoted as Hydra wants it; the others as they are.

    ``~`` at the start is the home folder; ``a/../b`` is followed once, here. A value in quotes, ``null``, and a list in
    brackets for what takes several files are read as Hydra reads them; each of a list's items may have any characters
    but a comma, and spaces around it are no part of it, unless only a file with them is there. What has been quoted
    here stays as it is.

    Raises:
        FieldError: for a path that is empty, in a list, too, or ``???``.
    """
    return [_quoted_override(override) for override in overrides]


def check_paths(values: Mapping[str, Any]) -> None:
    """Raise :class:`FieldError` for a path, in a composed configuration, under which no file system has a file.

    Args:
        values: the configuration, resolved.
    """
    for key in sorted(PATHS | SEVERAL, key=lambda key: (key != "run", key not in WRITTEN, key)):  # others lie below it
        group, _, name = key.rpartition(".")
        part = values.get(group) if group else values
        found = part.get(name) if isinstance(part, Mapping) else None
        for path in found if isinstance(found, list) else [found]:
            if isinstance(path, str):
                _check_path(key, path)


def _check_path(key: str, path: str) -> None:
    longest = _LONGEST_WRITTEN if key in WRITTEN else _LONGEST
    names = [os.fsencode(name) for name in path.split("/")]
    fix = f"pass {key}=PATH with another"
    allowed = f"a path of names of at most {longest} bytes each, {_LONGEST_PATH} bytes in all"
    whole = len(os.fsencode(os.path.abspath(path)))
    require(max(map(len, names)) <= longest and whole <= _LONGEST_PATH, field=key, value=path, allowed=allowed, fix=fix)
    free = key != "run" or not os.path.isfile(path)  # before what lies below it by default
    require(free, field=key, value=path, allowed="a folder, or a path where nothing is", fix=fix)
    try:
        os.stat(f"{path}/." if os.path.isdir(path) else path)  # a folder that may not be entered is none to read from
    except PermissionError as error:
        allowed = f"a path whose folders user {os.getuid()} may enter"
        raise FieldError(field=key, value=f"{path}: {error.strerror}", allowed=allowed, fix=fix) from None
    except OSError as error:
        wrong = error.errno in (errno.ELOOP, errno.ENOTDIR) or (error.errno == errno.ENOENT and os.path.islink(path))
        allowed = "a path below folders, whose links lead somewhere"
        require(not wrong, field=key, value=f"{path}: {error.strerror}", allowed=allowed, fix=fix)


def _quoted_override(override: str) -> str:
    key, separator, value = override.partition("=")
    if not separator or key not in PATHS | SEVERAL:
        return override
    # an empty path is the folder one is in
    require(
        value.strip() != "",
        field=key,
        value=value,
        allowed="a path",
        fix=f"pass {key}=PATH (was it an unset variable?), or leave it out",
    )
    if key in SEVERAL and value[0] == "[" and value[-1] == "]" and not os.path.exists(value):
        items = [_item(match[1]) for match in _ITEM.finditer(f"{value[1:-1]},")][:-1] if value[1:-1].strip() else []
        # else a variable that is not set would leave out a file
        require("" not in items, field=key, value=value, allowed="a list of paths, none empty", fix=f"pass {key}=[A,B]")
        return f"{key}=[{','.join(_quoted(key, item) for item in items)}]"
    return f"{key}={_quoted(key, value)}"


def _item(text: str) -> str:
    """One item of a list, without the spaces around it unless they are part of a file's name."""
    plain = text.strip()
    return text if plain and os.path.exists(text) and not os.path.exists(plain) else plain


def _quoted(key: str, value: str) -> str:
    if value == "null" or _is_quoted(key, value):
        return value
    # Hydra's word for a value that is still missing: what was given would be passed over
    require(value != "???", field=key, value=value, allowed="a path", fix=f"pass {key}=./??? if it is called so")
    path = os.path.expanduser(value)
    path = path.rstrip("/") or "/"
    if re.search(r"(^|/)(?!\.\.?/)[^/]+/+\.\.(/|$)", path):
        path = os.path.realpath(path)  # while it does not exist, a/../b is no path to b
    return str(QuotedString(text=path, quote=Quote.single).with_quotes())


def _is_quoted(key: str, value: str) -> bool:
    if value[0] not in "'\"" or os.path.exists(value):
        return False
    try:
        return isinstance(OverridesParser.create().parse_override(f"{key}={value}").value(), QuotedString | str)
    except HydraException:
        return False
