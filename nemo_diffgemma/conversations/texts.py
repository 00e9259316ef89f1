"""Texts of conversations."""

from __future__ import annotations

from typing import Any

from nemo_diffgemma.errors import require

_FIX = "write it, or drop the line"


def text_of(field: str, value: Any) -> str:
    """A text, or the text parts of a content together.

    Raises:
        FieldError: when it is neither, or holds half a surrogate pair.
    """
    if isinstance(value, list):
        value = "".join(_part(f"{field}[{index}]", part) for index, part in enumerate(value))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fix = f'write it in quotes: "{value}"' if number else _FIX
    require(isinstance(value, str), field=field, value=value, allowed="text", fix=fix)
    whole = value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    allowed = "text without half a surrogate pair (\\ud83d and the like)"
    require(whole, field=field, value=value, allowed=allowed, fix="write the character")
    return str(value)


def needed_text(field: str, value: Any) -> str:
    """:func:`text_of` what must say something.

    Raises:
        FieldError: also for white space alone.
    """
    text = text_of(field, value)
    require(text != "" and not text.isspace(), field=field, value=value, allowed="text", fix=_FIX)
    return text


def _part(field: str, part: Any) -> str:
    good = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    require(good, field=field, value=part, allowed='{"type": "text", "text": "..."}', fix="leave the part out")
    return str(part["text"])
