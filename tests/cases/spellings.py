"""Other ways to write an address, by which what looks at it and what answers might not mean the same."""

from __future__ import annotations

from collections.abc import Callable


def _encoded(path: str, which: Callable[[int, str], bool]) -> str:
    return "".join(f"%{ord(c):02x}" if c.isalpha() and which(i, c) else c for i, c in enumerate(path))


def _after_first(path: str, inserted: str) -> str:
    """``inserted`` after the first part of a path: ``/v2/x`` becomes ``/v2{inserted}/x``."""
    first, _, rest = path[1:].partition("/")
    return f"/{first}{inserted}/{rest}" if rest else f"{inserted}/{first}"


SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": lambda path: path,
    "// before": lambda path: "/" + path,
    "// inside": lambda path: _after_first(path, "/"),
    "// everywhere": lambda path: path.replace("/", "//"),
    "a slash behind": lambda path: path + "/",
    "two slashes behind": lambda path: path + "//",
    "the last letter as %": lambda path: _encoded(path, lambda i, _: i == len(path) - 1),
    "each r as %72": lambda path: _encoded(path, lambda _, c: c == "r"),
    "every letter as %": lambda path: _encoded(path, lambda *_: True),
    "% twice": lambda path: _encoded(path, lambda *_: True).replace("%", "%25"),
    "slashes as %2f": lambda path: "/" + path[1:].replace("/", "%2f"),
    ".": lambda path: _after_first(path, "/."),
    "..": lambda path: _after_first(path, "/models/.."),
    ".. as %": lambda path: _after_first(path, "/models/%2e%2e"),
    ".. above": lambda path: "/.." + path,
    ".. from an open one": lambda path: "/health/.." + path,
    "backslashes": lambda path: "/" + path[1:].replace("/", "\\"),
    "capitals": str.upper,
    "a query": lambda path: path + "?a=b",
    "an empty query": lambda path: path + "?",
    "a fragment": lambda path: path + "#a",
    "a parameter": lambda path: path + ";a=b",
    "%00 behind": lambda path: path + "%00",
    "%20 behind": lambda path: path + "%20",
    "%0a behind": lambda path: path + "%0a",
    "absolute": lambda path: "http://127.0.0.1" + path,
    "absolute, https": lambda path: "https://localhost:1" + path,
    "absolute, capitals": lambda path: "HTTP://A" + path,
    "absolute, without a host": lambda path: "http://" + path,
    "no slash": lambda path: path[1:],
}
"""A path, written so that some might take it for another, or another for it."""
