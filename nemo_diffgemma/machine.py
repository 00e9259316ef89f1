"""What the machine refuses (room, permission, a broken disk), told from faults of ours, whichever library met it."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What a user can mend: anything else is a fault of ours, whose traceback is wanted.
_MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE),
    *(errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EBUSY, errno.ETXTBSY, errno.ELOOP),
}


def refusal(error: BaseException) -> OSError | None:
    """The machine's refusal that ``error`` is, or that a library made it of; None when it is none.

    torch's writer of archives and safetensors' keep of the system's error at most its number, in words, and a
    distributed checkpoint holds one error per process.
    """
    if isinstance(error, OSError):
        return error if error.errno in _MACHINE else None
    failures = getattr(error, "failures", None)
    if isinstance(failures, dict):  # torch.distributed.checkpoint's CheckpointException
        found = [refusal(failure[0]) for failure in failures.values()]
        return next((f for f in found if f is not None), None)
    said = re.search(r"\(os error (\d+)\)", str(error))
    if said is not None:
        return refusal(OSError(int(said[1]), os.strerror(int(said[1]))))
    if isinstance(error, RuntimeError) and "inline_container" in str(error):
        if isinstance(error.__context__, OSError):
            return refusal(error.__context__)
        # of another process: its cause was lost on the way
        limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
        number = errno.EFBIG if limited else errno.EIO
        return OSError(number, os.strerror(number))
    return None


def named(error: OSError) -> str:
    """Which file or folder (of a copy, where it goes to), and what is wrong with it."""
    name = error.filename2 or error.filename
    return f"{name}: {error.strerror}" if name else str(error.strerror)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Have what the machine refuses in this block name ``place``, by the name that a user knows.

    An error that names another file, as of a copy's source, keeps that; one of a half-written file does not.

    Raises:
        OSError: for a refusal, whichever library met it.
    """
    try:
        yield
    except BaseException as error:
        found = refusal(error)
        if found is None:
            raise
        name = str(found.filename2 or found.filename or "")
        if not name or ".partial" in name:
            name = str(place)
        raise OSError(found.errno, os.strerror(found.errno or errno.EIO), name) from error
