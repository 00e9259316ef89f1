"""Paths on the command line, whatever characters they have: quoted, before Hydra reads its own grammar into them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from nemo_diffgemma.errors import require

# Keys of both command lines whose values are paths, and those of them that take several.
PATHS = frozenset({"run", "output", "init_from", "data.tokenizer", "checkpoint", "out", "calibration", "held_out"})
SEVERAL = frozenset({"data.train", "data.validation"})
# An item of a list: in quotes, or up to the next comma.
_ITEM = re.compile(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,]*?)\s*(?:,|$)""")


def quote_paths(overrides: Sequence[str]) -> list[str]:
    """Overrides in which every path is quoted as Hydra wants it; the others as they are.

    ``~`` at the start is the home folder. A value in quotes, ``null``, and a list in brackets for what takes several
    files are read as Hydra reads them; each of a list's items may have any characters but a comma. What has been
    quoted here stays as it is.

    Raises:
        FieldError: for a path that is empty, or ``???``.
    """
    return [_quoted_override(override) for override in overrides]


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
        items = [match[1] for match in _ITEM.finditer(value[1:-1]) if match[1]]
        return f"{key}=[{','.join(_quoted(key, item) for item in items)}]"
    return f"{key}={_quoted(key, value)}"


def _quoted(key: str, value: str) -> str:
    if value == "null" or _is_quoted(key, value):
        return value
    # Hydra's word for a value that is still missing: what was given would be passed over
    require(value != "???", field=key, value=value, allowed="a path", fix=f"pass {key}=./??? if it is called so")
    path = os.path.expanduser(value)
    path = path.rstrip("/") or "/"
    return str(QuotedString(text=path, quote=Quote.single).with_quotes())


def _is_quoted(key: str, value: str) -> bool:
    if value[0] not in "'\"" or os.path.exists(value):
        return False
    try:
        return isinstance(OverridesParser.create().parse_override(f"{key}={value}").value(), QuotedString | str)
    except HydraException:
        return False
