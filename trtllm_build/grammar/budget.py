"""What compiling a grammar may cost, and the error that says so."""

from __future__ import annotations

import time
from collections.abc import Callable

from nemo_diffgemma.errors import FieldError

MOST_STATES = 20_000
MOST_PAIRS = 200_000  # states and the states that one token leads to
MOST_SECONDS = 2.0
MOST_PIECES = 200_000  # states of the nondeterministic automaton; edges of a table that is walked in Python

Place = str | Callable[[], str]  # a part of a grammar, or what finds it when an error is to name it


class Budget:
    """The time and the size that one grammar may take. Made at the start of a compilation, by the thread that does it.

    Time is the thread's own: a busy machine makes a grammar late, and not a mistake.

    Args:
        field: what the error names (``grammar.regex``).
        value: what the error shows.
        seconds: from now.
    """

    def __init__(self, field: str, value: object, seconds: float = MOST_SECONDS):
        self.field, self.value = field, value
        self._end = time.thread_time() + seconds

    def error(self, allowed: str, place: Place = "") -> FieldError:
        """The error for a grammar that is too large; ``place`` is the part of it that is the largest."""
        named = place if isinstance(place, str) else place()
        return FieldError(
            field=f"{self.field} at {named}" if named else self.field,
            value=self.value,
            allowed=allowed,
            fix="make it smaller: shorter bounds (maxLength, maxItems, {n,m}), fewer alternatives, less nesting",
        )

    def check_states(self, count: int, place: Place = "") -> None:
        """Raise :class:`FieldError` for too many states, or when the time is over."""
        if count > MOST_STATES:
            raise self.error(f"a grammar of at most {MOST_STATES} states", place)
        self.check_time(place)

    def check_pieces(self, count: int, place: Place = "") -> None:
        """Raise :class:`FieldError` for a grammar that is too long even before it is compiled."""
        if count > MOST_PIECES:
            raise self.error(f"a grammar that takes at most {MOST_PIECES} steps to write out", place)
        self.check_time(place)

    def check_pairs(self, count: int) -> None:
        """Raise :class:`FieldError` for too many pairs of a state and one that a token leads to."""
        if count > MOST_PAIRS:
            raise self.error(f"a grammar of at most {MOST_PAIRS} pairs of states that a token joins")

    def check_time(self, place: Place = "") -> None:
        """Raise :class:`FieldError` when the time is over."""
        if time.thread_time() > self._end:
            raise self.error(f"a grammar that compiles in {MOST_SECONDS:g} s", place)
