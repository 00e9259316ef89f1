"""What every command does first, before anything slow is imported: signals and standard streams that may be gone."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

# Preemption, eviction, `docker stop` and scancel send SIGTERM; a terminal SIGINT and SIGHUP; Slurm, asked to warn
# before its time limit, SIGUSR1.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def enter() -> None:
    """Call first in a command's process.

    Until the command has handlers of its own, a signal ends it at once with one line and the status that shells give
    (128 plus the number); there is nothing to clean up yet. A standard stream that is closed or goes away (``| head``,
    ``>&-``, a full disk, a terminal that is closed) does not end a command: its work goes on, see
    :func:`status_of_output`. Names of files and what is printed are UTF-8, whatever the locale (``LC_ALL=C``).
    """
    _be_utf8()
    try:
        os.getcwd()
    except OSError as error:  # in which some libraries cannot even be loaded
        _say(f"error: the folder you are in: {error.strerror}; fix: cd to a folder that there is\n")
        raise SystemExit(2) from None
    for number in SIGNALS:
        # ignored ones stay ignored: nohup, and what a shell starts in the background
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end_now)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # else the next file that is opened would get its number, and what libraries print
            os.open(os.devnull, os.O_RDWR)
            _lost[descriptor] = OSError(errno.EBADF, "closed from the start")
    sys.stdout, sys.stderr = _steady(1, sys.stdout), _steady(2, sys.stderr)


def _be_utf8() -> None:
    """Begin anew in Python's UTF-8 mode where the locale is another: libraries in Rust open no other names."""
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"  # what is started from here has it, too
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class Stopped(BaseException):
    """A signal ended the command. Not an ``Exception``: what catches errors along the way must not catch this.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int):
        self.number = number
        super().__init__(signal.Signals(number).name)


def stop(number: int, _frame: FrameType | None = None) -> NoReturn:
    """Handler of a signal: raises :class:`Stopped` where the process is."""
    _told[:] = [number]
    raise Stopped(number)


@contextmanager
def told_apart() -> Iterator[None]:
    """Have :class:`Stopped` leave this block also where a library made another error of it on its way.

    What is written in Rust or C++ and calls Python (safetensors does) says that the call failed, whatever the reason.
    """
    _told.clear()
    try:
        yield
    except Exception as error:
        if _told:
            raise Stopped(_told[0]) from error
        raise


@contextmanager
def stoppable() -> Iterator[None]:
    """Have a signal raise :class:`Stopped` in this block, wherever the process is; ignored ones stay ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, stop)
        with told_apart():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def lost() -> OSError | None:
    """Why standard output could not be written; None as far as it could."""
    return _lost.get(1)


def leave() -> None:
    """Call last: what is left to do is Python's own end, in which a signal would give a status of its own."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def status_of_output(printed: bool) -> int:
    """Exit status of a command that has otherwise ended well, by what became of standard output.

    Args:
        printed: whether what the command printed is what it was run for; else it was progress, and a line on standard
            error says that it was dropped.

    Returns:
        1 when a result could not be printed, with one line, or none where the reader had seen enough; else 0.
    """
    if sys.stdout is not None:
        sys.stdout.flush()
    error = lost()
    if error is None:
        return 0
    if not printed:
        _say(f"warning: standard output was gone ({error.strerror}): the work is done, lines were dropped\n")
    elif error.errno != errno.EPIPE:
        _say(f"error: standard output: {error.strerror}; fix: send it elsewhere\n")
    return 1 if printed else 0


_lost: dict[int, OSError] = {}
_told: list[int] = []  # the signal that Stopped was raised for


class _Steady(io.FileIO):
    """A standard stream that, once it cannot be written, takes everything and drops it."""

    def write(self, data: Any, /) -> int:
        """Bytes written or dropped: all, or as many as the stream took."""
        try:
            return super().write(data) or 0
        except OSError as error:
            number = self.fileno()
            _lost[number] = error
            # for what libraries print, too
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
            return len(memoryview(data).cast("B"))


def _steady(number: int, stream: Any) -> Any:
    """The stream of a file descriptor; one that is another's (a test's) stays."""
    try:
        if stream is not None and stream.fileno() != number:
            return stream
    except (OSError, ValueError):
        return stream
    if stream is not None:
        stream.flush()
    raw = _Steady(number, "w", closefd=False)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    errors = getattr(stream, "errors", None) or ("backslashreplace" if number == 2 else "strict")
    buffered = number == 1 and not raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=not buffered)


def _end_now(number: int, _frame: FrameType | None) -> None:
    _say(f"stopped by {signal.Signals(number).name}\n")
    # no exception: a library that is being imported may catch it
    os._exit(128 + number)


def _say(line: str) -> None:
    with suppress(OSError):
        os.write(2, line.encode())
