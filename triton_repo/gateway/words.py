"""What is wrong with a request, in words of ours: those of the library that checks it name its own insides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from triton_repo.gateway.messages import SHAPE

_INTEGER, _NUMBER, _OBJECT = "an integer", "a finite number", "a JSON object"
# By pydantic's type of error: what is allowed, with the names of its context in braces.
_ALLOWED = {
    "string_type": "a text",
    "string_unicode": "a text without half of a surrogate pair",
    "string_too_short": "a text that is not empty",
    "string_too_long": "a text of at most {max_length} characters",
    "int_type": _INTEGER,
    "int_from_float": _INTEGER,
    "int_parsing_size": _INTEGER,
    "float_type": _NUMBER,
    "finite_number": _NUMBER,
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": _OBJECT,
    "object": "JSON of an object, as text",
    "model_type": _OBJECT,
    "model_attributes_type": _OBJECT,
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "literal_error": "{expected}",
    "union_tag_invalid": "a text or a list, as docs/openai.md says",
}
_OTHERWISE = "what docs/openai.md says of this field"
_CHANGE, _OMIT = "correct it", "leave it out, or correct it"


def path(error: Mapping[str, Any]) -> str:
    """The field that an error of pydantic is about, as ``messages[0].content``; empty for the body itself.

    Args:
        error: has ``loc`` and perhaps ``ctx``.
    """
    # The body itself, and which shape of several it was taken for, are no part of it; an unknown field's name is.
    parts = [part for part in error["loc"][1:] if not str(part).startswith(SHAPE) or _unknown(error, part)]
    parts += [error["ctx"]["field"]] if error["type"] == "wrong" else []
    parts += ["type"] if error["type"] == "type" else []
    if not parts and error["type"] == "string_unicode":
        parts = [error["input"]]  # a field's name
    joined = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    return _sendable(joined)


def allowed(error: Mapping[str, Any]) -> tuple[str, str]:
    """What is allowed instead of the value that an error of pydantic is about, and the fix."""
    if error["type"] == "type":
        return error["msg"], _CHANGE
    known = _ALLOWED.get(error["type"])
    if known is None:
        return _OTHERWISE, _OMIT
    return known.format_map(error.get("ctx") or {}), _CHANGE


class Shown:
    """A value in a message, as the client wrote it: its ``repr`` is JSON."""

    def __init__(self, value: Any):
        self._value = value

    def __repr__(self) -> str:
        return _sendable(json.dumps(self._value, ensure_ascii=False))


def _sendable(text: str) -> str:
    """``text`` with its halves of surrogate pairs spelt: they have no UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _unknown(error: Mapping[str, Any], part: object) -> bool:
    return bool(error["type"] == "extra_forbidden" and part == error["loc"][-1])
