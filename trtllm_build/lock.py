"""One build a bundle at a time, on one machine or on several that share a volume."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(out: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold ``<out>.lock``; waits for another build of the same bundle to end.

    The lock is the kernel's (NFS hands it to its server), so that it ends with its process however that ends.

    Args:
        out: the bundle's directory.
        report: called with a line of text before it waits.
    """
    path = out.with_name(f"{out.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"wait     {path}: another build of this bundle is under way")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            report(f"warning  {path}: this file system has no locks; nothing else may build this bundle now")
        yield
