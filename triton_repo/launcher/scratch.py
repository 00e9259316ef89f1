"""The folder that a server works in, which goes when the server ends, however it ends."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.files import locked

_PREFIX = "diffgemma-serve-"
# tritonserver has a shell start its stub, whose Python, whatever the locale, knows paths in ASCII alone.
_PATH = re.compile(r"[A-Za-z0-9._/@,:=+%~-]+")
_FIX = "set TMPDIR to another folder, for instance TMPDIR=$HOME"
# Where tempfile looks, in this order.
_VARIABLES = ("TMPDIR", "TEMP", "TMP")
_SHARED_MEMORY = Path("/dev/shm")


class Scratch:
    """A private folder in TMPDIR, and a prefix of names in shared memory, held by a lock while this process lives.

    A process that is killed removes nothing; the next that starts removes what no living process holds.

    Raises:
        FieldError: naming TMPDIR, when nothing can be written there or no program be run from there.
    """

    def __init__(self) -> None:
        temporary = str(_temporary())
        allowed = "a path of ASCII letters, digits and . _ / @ , : = + % ~ - (tritonserver has a shell read it)"
        require(_PATH.fullmatch(temporary) is not None, field="TMPDIR", value=temporary, allowed=allowed, fix=_FIX)
        self._lock = ExitStack()
        try:
            _sweep(Path(temporary))
            # nobody sweeps it before it is locked, since its name begins otherwise
            made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}{os.getpid()}-"))
            self._lock.enter_context(locked(made / "lock", _held, lambda: None))
            self.path = made.rename(made.with_name(made.name[1:]))
        except OSError as error:
            raise FieldError(
                field="TMPDIR", value=temporary, allowed=f"a folder that can be written ({error})", fix=_FIX
            ) from error
        runs = not os.statvfs(self.path).f_flag & os.ST_NOEXEC
        if not runs:
            self.remove()
        allowed = "a folder that programs can be run from (it is mounted noexec)"
        require(runs, field="TMPDIR", value=str(self.path.parent), allowed=allowed, fix=_FIX)

    @property
    def shm_prefix(self) -> str:
        """What names in shared memory begin with."""
        return _shm_prefix(self.path)

    def remove(self) -> None:
        """Remove the folder and the shared memory."""
        _remove(self.path)
        self._lock.close()


def _temporary() -> Path:
    """The folder that is named for temporary files; where tempfile cannot use it, it takes another and says nothing."""
    name = next((name for name in _VARIABLES if os.environ.get(name)), "TMPDIR")
    named = os.environ.get(name) or "/tmp"
    found: Path | None = None
    with suppress(OSError):
        found = Path(tempfile.gettempdir()).absolute()
    usable = found is not None and (not os.environ.get(name) or found == Path(os.path.abspath(named)))
    require(usable, field=name, value=named, allowed="a folder that exists and can be written", fix=_FIX)
    assert found is not None
    return found


def _held() -> None:
    raise BlockingIOError("another process works in it")


def _unknown() -> None:
    raise BlockingIOError("this file system has no locks, so nobody knows")


def _sweep(temporary: Path) -> None:
    """Remove what killed processes of this user have left."""
    for folder in temporary.glob(f"{_PREFIX}*"):
        try:
            if folder.lstat().st_uid != os.geteuid() or not (folder / "lock").is_file():
                continue
            with locked(folder / "lock", _held, _unknown):
                _remove(folder)
        except OSError:
            continue  # in use, or another process is quicker


def _remove(folder: Path) -> None:
    for region in _SHARED_MEMORY.glob(f"{_shm_prefix(folder)}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _shm_prefix(folder: Path) -> str:
    return "diffgemma_" + folder.name.removeprefix(_PREFIX).replace("-", "_")
