"""Processes of our own: the Python that runs them, their end with who started them, what they may take."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # prctl(2)
# Enough; some programs begin by closing every number up to their limit, which may be a billion.
_MANY_FILES = 2**16
# Loaded before any fork: between fork and exec nothing may be imported.
_LIBC = ctypes.CDLL(None, use_errno=True)


def end_with_parent(number: signal.Signals, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when its parent is gone, however that went.

    The kernel watches the thread that started this process: it has to live as long as its process.

    Args:
        number: of the signal.
        parent: its process id; where it is gone already, this process ends at once. None: it is not looked at.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def parent_of(pid: int) -> int | None:
    """The process that started another one, or that has taken it over; None when it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    return int(stat.rpartition(")")[2].split()[1])


def python() -> str:
    """The command that runs Python. Where it is embedded in another program, ``sys.executable`` need not be Python."""
    own = Path(sys.prefix) / "bin" / "python3"
    return str(own) if own.is_file() else sys.executable


def raise_open_files() -> int:
    """Let this process, and those that it starts, open as many files as the system allows them; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # "unlimited" is no number that any system grants for files
    most = _MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, _MANY_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


@contextmanager
def memory(most: int) -> Iterator[None]:
    """Have this process get at most so many bytes more in this block: what asks for more gets a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    lower(resource.RLIMIT_AS, size + most)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def lower(limit: int, most: int) -> None:
    """Lower one of the kernel's limits; only the soft one, which can be raised again."""
    soft, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard))
