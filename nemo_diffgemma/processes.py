"""Processes of our own: the Python that runs them, and their end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # prctl(2)
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


def python() -> str:
    """The command that runs Python. Where it is embedded in another program, ``sys.executable`` need not be Python."""
    own = Path(sys.prefix) / "bin" / "python3"
    return str(own) if own.is_file() else sys.executable
