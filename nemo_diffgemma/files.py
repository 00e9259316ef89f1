"""Files that appear whole or not at all, and folders that are replaced only when this product wrote them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import IO, Any

from nemo_diffgemma.errors import require
from nemo_diffgemma.machine import writing


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes its name by a rename once it is written and flushed to disk; its mode follows the umask.

    When the block raises, nothing is left and what ``path`` was before stays.

    Raises:
        OSError: naming ``path``, when the machine refuses.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        with writing(path):
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with new_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, whole or not at all: indented, keys in order.

    Raises:
        ValueError: when ``value`` holds NaN or infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def follow_umask(path: Path) -> None:
    """Give a file the mode that a new file has: some libraries make theirs readable for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- folders that are written as one thing ---------------------------------------------------------------------------


def file_entries(
    place: Path, marker: str | None = None, tick: Callable[[int], None] = lambda _done: None
) -> dict[str, dict[str, Any]]:
    """``{relative path: {"bytes": ..., "sha256": ...}}`` of every file below ``place``, or of the file it is (``.``).

    Args:
        place: a folder, or a file.
        marker: the file below it that will hold the entries.
        tick: told how many bytes have been read.
    """
    paths = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    paths = [path for path in paths if marker is None or path != place / marker]
    found, done = {}, 0
    # several at a time: the shards of a large model take a minute each
    with ThreadPoolExecutor() as pool:
        for path, digest in zip(paths, pool.map(file_sha256, paths), strict=True):
            size = path.stat().st_size
            found[path.relative_to(place).as_posix()] = {"bytes": size, "sha256": digest}
            tick(done := done + size)
    return found


def check_replaceable(directory: Path, marker: str, field: str) -> None:
    """Refuse to replace a folder that holds anything which this product did not write there.

    Allowed are a path where nothing is, an empty folder, and a folder whose ``marker`` (a JSON file) lists every other
    file in it under ``files``, each as it is listed. What a killed process had moved aside and
    not replaced yet is put back first.

    Args:
        directory: what is to be replaced.
        marker: name of the JSON file that this product writes into such a folder.
        field: how the user named the folder (``output``).

    Raises:
        FieldError: when the folder, or a file in its place, is somebody else's.
    """
    place = directory.resolve()
    _put_back(place, marker)
    fix = f"pass {field}=DIR with a new folder; nothing was changed"
    if not place.exists():
        return
    require(place.is_dir(), field=field, value=str(directory), allowed="a folder, or a path where nothing is", fix=fix)
    here = Path.cwd().resolve()
    allowed = "a folder of its own: the one you are in, and those above it, cannot be replaced"
    require(place != here and place not in here.parents, field=field, value=str(directory), allowed=allowed, fix=fix)
    allowed = "a folder below the mount point, which itself cannot be replaced"
    require(
        not os.path.ismount(place),
        field=field,
        value=str(directory),
        allowed=allowed,
        fix=f"pass {field}={directory / 'NAME'}",
    )
    foreign = _foreign(place, marker)
    allowed = f"a new or empty folder, or one written here before ({marker} in it lists its files)"
    require(not foreign, field=field, value=f"{directory} holds {some(foreign)}", allowed=allowed, fix=fix)


def partial_directory(directory: Path, token: str) -> Path:
    """Where a folder is prepared before it takes its place: beside it, so on the same volume.

    Args:
        directory: what will be replaced.
        token: tells this writer's from others'; the same writer finds its own again after it was killed.
    """
    place = directory.resolve()
    return place.with_name(f".{place.name}.{short_hash(token)}.partial")


def put_in_place(partial: Path, directory: Path, marker: str, field: str) -> None:
    """Move a prepared folder to ``directory``; what was there stays until the new one is in place.

    Raises:
        FieldError: see :func:`check_replaceable`; the prepared folder then stays where it is.
    """
    check_replaceable(directory, marker, field)
    place = directory.resolve()
    old = partial.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    try:
        if place.exists():
            place.rename(old)
        partial.rename(place)
    except BaseException:  # a signal, too, at any moment: then the new one may be in its place already
        if old.exists() and not place.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def is_moved_aside(path: Path, directory: Path) -> bool:
    """Whether this is the name under which :func:`put_in_place` keeps what was at ``directory``."""
    name = re.escape(directory.resolve().name)
    return re.fullmatch(rf"\.{name}\.[0-9a-f]{{12}}\.old", path.name) is not None


def short_hash(text: str) -> str:
    """Twelve hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def some(names: list[str]) -> str:
    """First few of a list of names, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def listed_files(directory: Path, marker: str) -> Mapping[str, Any] | None:
    """What the ``marker`` of a folder lists under ``files``; None when there is no such list."""
    try:
        found = json.loads(regular_text(directory / marker))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def regular_text(path: Path) -> str:
    """A UTF-8 text file, of a name that may be somebody's: reading a pipe would wait for who writes into it.

    Raises:
        OSError: when it cannot be read, or is no regular file.
    """
    if not path.is_file():
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return path.read_text(encoding="utf-8")


def _foreign(directory: Path, marker: str) -> list[str]:
    """Files in a folder that its marker does not list as they are now; the folder's whole content without a marker."""
    listed = listed_files(directory, marker)
    if listed is None:
        return sorted(p.name for p in directory.iterdir())
    found = []
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if name != marker and not as_listed(path, listed.get(name)):
            found.append(name)
    return sorted(found)


def as_listed(path: Path, entry: Any) -> bool:
    """Whether a file is what a marker's entry for it says, to the last byte: weights can be changed in place."""
    if not isinstance(entry, dict) or not path.is_file() or path.stat().st_size != entry.get("bytes"):
        return False
    return file_sha256(path) == entry.get("sha256")


def _put_back(place: Path, marker: str) -> None:
    if place.exists() or not place.parent.is_dir():
        return
    for old in sorted(place.parent.glob(f".{escape(place.name)}.*.old")):
        if is_moved_aside(old, place) and listed_files(old, marker) is not None:
            old.rename(place)
            return


# -- locks -----------------------------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path, busy: Callable[[], None], unsupported: Callable[[], None]) -> Iterator[None]:
    """Hold the kernel's lock on the file ``path``, which is made when missing and removed at the end if it is empty.

    The lock ends with its process however that ends (NFS hands it to its server). Folders that were made for the file
    and are empty at the end go, too.

    Args:
        path: the lock file.
        busy: called when another process holds the lock; raises, or returns to wait for it.
        unsupported: called when the file system has no locks; the block then runs without one.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        with ExitStack() as stack:
            while not _lock(stack.enter_context(_lock_file(path)), busy, unsupported, path):
                # who held it has removed it meanwhile: what is locked is no longer what others will find
                stack.close()
            try:
                yield
            finally:
                if is_lock(path):
                    path.unlink()
    finally:
        with suppress(OSError):  # something lies in it by now
            for folder in made:
                folder.rmdir()


def is_lock(path: Path) -> bool:
    """Whether this is what :func:`locked` makes: an empty file. One that somebody wrote into is somebody's."""
    return path.is_file() and path.stat().st_size == 0


def _lock_file(path: Path) -> IO[str]:
    for _ in range(99):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # who held the lock has just removed the folder that was made for it
            return open(path, "a", opener=_at_once)
    return open(path, "a", opener=_at_once)


def _at_once(path: str, flags: int) -> int:
    """Open a file, and no pipe of that name: that would wait for who reads it."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def _lock(file: IO[str], busy: Callable[[], None], unsupported: Callable[[], None], path: Path) -> bool:
    """Lock an open file; whether it still is the one at ``path``."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        busy()
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        unsupported()
        return True
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
