"""A record of a file, and what of it may be missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Record = dict[str, Any]
Tick = Callable[[int], None]
"""Called now and then with the bytes of the file that have been read."""

ONE_A_LINE = 'one JSON object per line: {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}'


def is_absent(value: Any) -> bool:
    """Whether a field says nothing: null, an empty text, an empty list. Other values that Python calls false do."""
    return value is None or (isinstance(value, str | list) and not value)
