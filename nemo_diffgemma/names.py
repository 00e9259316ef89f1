"""Names of files and folders that may be used: those that every library can open, and every log can show."""

from __future__ import annotations

import os
import unicodedata

from nemo_diffgemma.errors import FieldError, require

# Of characters: control ones, bytes that are no UTF-8 (as Python holds them), separators of lines and of paragraphs.
_REFUSED = {"Cc", "Cs", "Zl", "Zp"}


def check_name(field: str, name: str) -> None:
    """Refuse a path, or whatever else is given by name, that is not UTF-8 or has control characters.

    Several libraries cannot open the one, and the other would write lines of its own into logs.

    Raises:
        FieldError: naming ``field``.
    """
    if name.isprintable():
        return
    kinds = {unicodedata.category(character) for character in name} & _REFUSED
    allowed = "a name in UTF-8" if "Cs" in kinds else "a name without line ends and other control characters"
    require(not kinds, field=field, value=name, allowed=allowed, fix="rename it (mv), or pass another")


def check_path(field: str, path: str) -> None:
    """:func:`check_name`, also of where a relative path or a link leads."""
    check_name(field, path)
    try:
        check_name(field, os.path.realpath(path))
    except OSError as error:  # the folder that one is in was removed
        found = f"{path!r}: {error.strerror}"
        raise FieldError(
            field=field, value=found, allowed="a path that leads somewhere", fix="cd to a folder"
        ) from None
