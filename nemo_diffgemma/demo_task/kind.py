"""What a kind of conversation is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

# What was said, in turn: the user's first; the last is the question.
Turns = tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """One kind of conversation with one right answer.

    Args:
        name: how reports call it.
        share: how many of all conversations are of this kind, in proportion to the other kinds' shares.
        draw: makes turns and answer, in a trained wording (False) or in one that is never trained (True).
        answer: the right answer to any turns; None when they are not of this kind.
    """

    name: str
    share: int
    draw: Callable[[random.Random, bool], tuple[Turns, str]]
    answer: Callable[[Turns], str | None]
