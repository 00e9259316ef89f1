"""API keys: a file with a line for each, which holds no key but its hash, and what makes such a line.

``NAME:SHA256[:LIMIT=NUMBER,...]``; lines that are empty or begin with ``#`` are passed over.
"""

from __future__ import annotations

import errno
import hashlib
import re
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_diffgemma.errors import FieldError, require

# also in logs, and before a colon in what salts are made of
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LIMITS = ("requests", "tokens_per_minute")
_LINE = f"NAME:SHA256[:LIMIT=NUMBER,...], with the limits {' and '.join(_LIMITS)}"
_NEW = "make a line with: diffgemma-serve --new-key NAME"
_MOST_NUMBER = 2**53


@dataclass(frozen=True)
class ApiKey:
    """Who may ask, and how much.

    Args:
        name: whose it is; in logs, and for turns.
        digest: SHA-256 of the key, 32 bytes.
        requests: most of its requests that run at once; None for any number.
        tokens_per_minute: of prompts and answers; None for any number.
    """

    name: str
    digest: bytes
    requests: int | None = None
    tokens_per_minute: int | None = None


def digest(key: str) -> bytes:
    """What is kept of a key: SHA-256. Enough for keys of 256 random bits; one that a person thought up could be found
    by trying."""
    return hashlib.sha256(key.encode()).digest()


def new(name: str) -> tuple[str, str]:
    """A new key, and its line for the file.

    Raises:
        FieldError: for a name that cannot be used.
    """
    _check_name("--new-key", name)
    key = f"dg-{secrets.token_urlsafe(32)}"
    return key, f"{name}:{digest(key).hex()}"


def read(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file.

    Raises:
        FieldError: for a file that cannot be read or holds no key, and for a line that is none; never with a key that
            stands in place of its hash.
    """
    try:
        # A pipe would wait for who writes to it, and can be read but once.
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        allowed = f"a file of lines {_LINE} ({reason})"
        raise FieldError(field="--api-key-file", value=str(path), allowed=allowed, fix=_NEW) from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    keys = [_key(f"{path}:{number}", line) for number, line in lines if line and not line.startswith("#")]
    require(bool(keys), field="--api-key-file", value=str(path), allowed="a file with at least one key", fix=_NEW)
    _check_unique(path, keys)
    return tuple(keys)


def _key(where: str, line: str) -> ApiKey:
    name, _, rest = line.partition(":")
    said, _, limits = rest.partition(":")
    good = _DIGEST.fullmatch(said) is not None
    # What stands there may be a key.
    require(good, field=where, value="a line without a hash", allowed=_LINE, fix=_NEW)
    _check_name(where, name)
    given: dict[str, int] = {}
    for limit in limits.split(",") if limits else ():
        kind, _, number = limit.partition("=")
        right = kind in _LIMITS and kind not in given and number.isascii() and number.isdigit()
        allowed = f"{' or '.join(f'{known}=NUMBER' for known in _LIMITS)}, 1 or more, each once"
        require(
            right and 1 <= int(number[:20]) <= _MOST_NUMBER,
            field=where,
            value=limit,
            allowed=allowed,
            fix="correct it, or leave it out",
        )
        given[kind] = int(number)
    return ApiKey(name, bytes.fromhex(said), **given)


def _check_name(field: str, name: str) -> None:
    allowed = "a name of 1 to 64 letters, digits and . _ -"
    require(_NAME.fullmatch(name) is not None, field=field, value=name, allowed=allowed, fix="choose such a name")


def _check_unique(path: Path, keys: Sequence[ApiKey]) -> None:
    """Two keys of one name are one customer whose key is being changed; one key of two names is nobody's."""
    found: dict[bytes, str] = {}
    for key in keys:
        other = found.setdefault(key.digest, key.name)
        require(
            other == key.name,
            field="--api-key-file",
            value=f"{path}: {key.name}",
            allowed=f"a hash of its own; {other} has the same",
            fix=_NEW,
        )
    limits: dict[str, ApiKey] = {}
    for key in keys:
        first = limits.setdefault(key.name, key)
        same = (first.requests, first.tokens_per_minute) == (key.requests, key.tokens_per_minute)
        require(
            same,
            field="--api-key-file",
            value=f"{path}: {key.name}",
            allowed="the same limits in all lines of a name, which share them",
            fix="make them the same",
        )
