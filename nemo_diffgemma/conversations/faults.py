"""Many broken lines as one error: the first in full, a few more by name, and how many there are."""

from __future__ import annotations

from nemo_diffgemma.errors import FieldError

_NAMED = 4


class Faults:
    """Errors of single lines, collected."""

    def __init__(self) -> None:
        self._first: FieldError | None = None
        self._more: list[str] = []
        self.count = 0

    def add(self, where: str, error: FieldError) -> None:
        """Note an error of the line that ``where`` names."""
        self.count += 1
        if self._first is None:
            self._first = error
        elif len(self._more) < _NAMED:
            self._more.append(where)

    def check(self) -> None:
        """Raise :class:`FieldError` when there was any error."""
        first, others = self._first, self.count - 1
        if first is None:
            return
        if others:
            unnamed = others - len(self._more)
            names = ", ".join(self._more) + (f" and {unnamed:,} more" if unnamed else "")
            remedy = f"{first.remedy} (so it is with {others:,} more: {names})"
            first = FieldError(first.field, first.value, first.allowed, remedy)
        raise first
