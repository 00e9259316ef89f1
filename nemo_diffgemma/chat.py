"""What a chat template renders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Message = dict[str, Any]


class Chat(NamedTuple):
    """A conversation as chat templates take it.

    Args:
        messages: with ``role`` and ``content``, and what else the template knows.
        tools: declarations of functions.
    """

    messages: Sequence[Message]
    tools: Sequence[Any] = ()
