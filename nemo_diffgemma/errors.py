"""The one error a user's mistake raises: it names the field, the value, what is allowed and the fix."""

_LONGEST = 400  # characters of a value that a message shows


class FieldError(ValueError):
    """A value that came from outside (config, command line, request, file) and cannot be used.

    The message is one line that can be printed anywhere, whatever names and texts it speaks of. A long value is cut in
    it: it may be a whole prompt.

    Args:
        field: Dotted name of what was set, as the user wrote it (``model.num_experts``).
        value: What was found.
        allowed: What would have been accepted, in words.
        fix: The command or edit that fixes it.
    """

    def __init__(self, field: str, value: object, allowed: str, fix: str):
        self.field, self.value, self.allowed, self.fix = field, value, allowed, fix
        try:
            shown = repr(value)
        except RecursionError:
            shown = f"a {type(value).__name__} in which brackets are too deep in each other"
        except ValueError:  # Python writes integers of at most 4300 digits
            shown = f"a {type(value).__name__} with too many digits to be shown"
        if len(shown) > _LONGEST:
            shown = f"{shown[: _LONGEST // 2]}...{shown[-_LONGEST // 2 :]}"
        self.shown = shown
        super().__init__(printable(f"{field}: {shown} cannot be used; allowed: {allowed}; fix: {fix}"))

    def __reduce__(self) -> tuple[type, tuple[str, object, str, str]]:
        # An exception is otherwise made again from its message alone, when it comes from another process. To which a
        # large or deep value does not go: it would be cut, and pickling may not come to its end.
        small = self.value is None or isinstance(self.value, int | float)
        small = small or (isinstance(self.value, str) and len(self.value) <= _LONGEST)
        return type(self), (self.field, self.value if small else _Shown(self.shown), self.allowed, self.fix)


class _Shown:
    """What a message shows of a value that stayed in another process."""

    def __init__(self, text: str):
        self._text = text

    def __repr__(self) -> str:
        return self._text


def printable(text: str) -> str:
    """``text`` in one line: what cannot be printed (line ends, control characters, bytes that are no UTF-8) escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def require(condition: bool, field: str, value: object, allowed: str, fix: str) -> None:
    """Raise :class:`FieldError` unless ``condition`` holds."""
    if not condition:
        raise FieldError(field=field, value=value, allowed=allowed, fix=fix)


def require_integer(field: str, value: object, least: int, most: int | None = None) -> None:
    """Raise :class:`FieldError` unless ``value`` is an integer (no bool) from ``least`` to ``most``."""
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least and (most is None or value <= most)
    allowed = f"an integer >= {least}" if most is None else f"an integer from {least} to {most}"
    require(good, field=field, value=value, allowed=allowed, fix=f"pass {field}={least}")
