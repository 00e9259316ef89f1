"""What a kind of conversation is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

# What was said, in turn: the user's first; the last is the question.
Turns = tuple[str, ...]
# The one right answer; or, where there are many, what tells whether an answer is one of them.
Right = str | Callable[[str], bool]


@dataclass(frozen=True)
class Style:
    """How conversations are worded.

    Args:
        draw: decides everything that is left open.
        unseen: in wordings that are never trained.
        noisy: with words between others that change no answer: the model is to look for words that matter, not for
            whole sentences.
    """

    draw: random.Random
    unseen: bool = False
    noisy: bool = False


@dataclass(frozen=True)
class Kind:
    """One kind of conversation.

    Args:
        name: how reports call it.
        share: how many of all conversations are of this kind, in proportion to the other kinds' shares.
        make: draws turns and an answer that is right.
        right: what is right after any turns; None when they are not of this kind.
    """

    name: str
    share: int
    make: Callable[[Style], tuple[Turns, str]]
    right: Callable[[Turns], Right | None]

    def is_right(self, turns: Turns, answer: str) -> bool:
        """Whether ``answer`` is the right one after ``turns``, or one of them."""
        right = self.right(turns)
        return right is not None and (answer == right if isinstance(right, str) else right(answer))
