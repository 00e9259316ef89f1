"""Where a build works and what it may replace: its own bundles, never what else a user has there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from glob import escape
from pathlib import Path

from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.files import (
    as_listed,
    check_replaceable,
    follow_umask,
    is_moved_aside,
    listed_files,
    locked,
    partial_directory,
    put_in_place,
    regular_text,
    some,
    write_text,
)
from nemo_diffgemma.machine import writing
from trtllm_build.bundle_files import INPUTS, is_bundle_file
from trtllm_build.manifest import MANIFEST
from trtllm_build.spec import PIECES

Report = Callable[[str], None]


def check_place(folder: Path, sources: list[Path]) -> None:
    """Refuse a folder that cannot be written, or that is or holds what the build reads.

    Args:
        folder: of the bundle.
        sources: what it is made of: the checkpoint, files of conversations.

    Raises:
        FieldError: naming ``out``.
    """
    place, fix = folder.resolve(), "pass out=DIR with a folder of its own; nothing was changed"
    for source in sources:
        inside = place == source.resolve() or place in source.resolve().parents
        require(
            not inside,
            field="out",
            value=str(folder),
            allowed=f"a folder that does not hold {source}, which the build reads",
            fix=fix,
        )
    above = existing(place.parent)
    require(
        above.is_dir(), field="out", value=str(folder), allowed=f"a path below a folder, which {above} is not", fix=fix
    )
    allowed = f"a folder that user {os.getuid()} can write to, which {above} is not"
    require(os.access(above, os.W_OK | os.X_OK), field="out", value=str(folder), allowed=allowed, fix=fix)
    if place.exists():
        damage(folder)
    # root may write anywhere, but not every file system takes files
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        allowed = f"a path where files can be written, which {above} is not ({error.strerror})"
        raise FieldError(field="out", value=str(folder), allowed=allowed, fix=fix) from None


def check_space(folder: Path, needed: int) -> None:
    """Refuse a folder whose volume has fewer than ``needed`` bytes left.

    What stopped builds of the bundle left there counts as free: it is taken up, or removed.
    """
    above = existing(folder.resolve())
    free = shutil.disk_usage(above).free + sum(folder_bytes(left) for left in _left_behind(folder))
    require(
        needed <= free,
        field="out",
        value=f"{folder}, with {free / 1e9:.1f} GB left on its volume",
        allowed=f"a volume with {needed / 1e9:.1f} GB left, which the bundle takes",
        fix="free some, or pass out=DIR on a larger volume",
    )


def folder_bytes(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


def existing(path: Path) -> Path:
    """The path, or the nearest above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def one_build_at_a_time(folder: Path, report: Report) -> AbstractContextManager[None]:
    """Wait for another build of the same bundle, on this machine or on one that shares the volume.

    The lock is a hidden file beside the bundle, never written to: a volume is shared, what else machines have is not.

    Args:
        folder: the bundle's.
        report: called with a line of text before it waits.
    """
    place = folder.resolve()
    path = place.with_name(f".{place.name}.diffgemma.lock")
    waits = f"wait     {folder}: another build of this bundle is under way"
    alone = f"warning  {path}: this file system has no locks; nothing else may build this bundle now"
    return locked(path, lambda: report(waits), lambda: report(alone))


@contextmanager
def working(folder: Path, stamp: str, note: Report) -> Iterator[Path]:
    """Give a build its :func:`work_directory`, which stays when the build is stopped and goes when it is refused.

    Raises:
        OSError: naming the bundle, when a file in there cannot be written; what is finished stays.
    """
    new = not partial_directory(folder, stamp).exists()
    with writing(folder):
        work = work_directory(folder, stamp, note)
    try:
        with writing(folder):
            yield work
    except FieldError:
        if new:
            shutil.rmtree(work, ignore_errors=True)
        raise
    except BaseException:
        _remove_halves(work)
        raise


def work_directory(folder: Path, stamp: str, note: Report) -> Path:
    """Where a bundle is prepared: kept from a stopped build of the same inputs, else empty.

    What builds of other inputs left there is removed; call it under the lock.

    Args:
        folder: the bundle's.
        stamp: what it is built from, as :data:`INPUTS` holds it.
        note: called with a line when there is something to go on with.
    """
    damage(folder)
    work = partial_directory(folder, stamp)
    for left in _left_behind(folder):
        if left != work:
            note(f"remove   {left}: left behind by a build of other inputs")
            shutil.rmtree(left, ignore_errors=True)
    if _stamp_of(work) == stamp:
        _remove_halves(work)
        note(f"resume   {work}")
        return work
    # a build that was killed over its first file
    for path in work.glob(f".{INPUTS}.*.partial"):
        path.unlink()
    require(
        not work.exists() or not any(work.iterdir()),
        field="out",
        value=f"{folder}, beside {work}",
        allowed=f"nothing under that name but what a build left there ({INPUTS} in it says so)",
        fix=f"remove {work}, or pass out=DIR with another folder",
    )
    work.mkdir(parents=True, exist_ok=True)
    try:
        write_text(work / INPUTS, stamp)
    except BaseException:
        with suppress(OSError):  # what says whose it is was written just before
            work.rmdir()
        raise
    return work


def put(work: Path, folder: Path, note: Report) -> None:
    """Move a finished folder to its place, with the modes of new files; a damaged bundle there is kept aside."""
    for path in work.rglob("*"):
        if path.is_file() and not path.is_symlink():
            follow_umask(path)
    if (found := damage(folder)) is not None:
        aside = _unused(folder.resolve())
        folder.resolve().rename(aside)
        note(f"bundle   {folder} was damaged ({found}): it is kept as {aside}")
    put_in_place(work, folder, MANIFEST, "out")


def damage(folder: Path) -> str | None:
    """What is wrong with the bundle that will be replaced; None when it is whole, or nothing is there.

    A bundle is damaged when a file is not as its manifest lists it, or the manifest lists none and all files are such
    as bundles have. It may also have been edited: it is never erased.

    Raises:
        FieldError: when the folder holds anything else.
    """
    try:
        check_replaceable(folder, MANIFEST, "out")
    except FieldError:
        place, here = folder.resolve(), Path.cwd().resolve()
        movable = place.is_dir() and place != here and place not in here.parents and not os.path.ismount(place)
        if not movable or not (place / MANIFEST).is_file():
            raise
        names = [p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_symlink() or not p.is_dir()]
        names.remove(MANIFEST)
        listed = listed_files(place, MANIFEST)
        if not all(is_bundle_file(name) if listed is None else name in listed for name in names):
            raise
        if listed is None:
            return f"{MANIFEST} lists no files"
        return some(sorted(name for name in names if not as_listed(place / name, listed[name])))
    return None


def _left_behind(folder: Path) -> Iterator[Path]:
    """Work directories of stopped builds of this bundle, and what a build had moved aside and was killed over."""
    place = folder.resolve()
    if not place.parent.is_dir():
        return
    for path in sorted(place.parent.glob(f".{escape(place.name)}.*")):
        stamp = _stamp_of(path)
        # its name is the hash of what it says of itself
        stopped = stamp is not None and path == partial_directory(folder, stamp)
        moved = is_moved_aside(path, place) and place.exists() and listed_files(path, MANIFEST) is not None
        if stopped or moved:
            yield path


def _stamp_of(work: Path) -> str | None:
    try:
        text = regular_text(work / INPUTS)
        json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None
    return text


def _remove_halves(work: Path) -> None:
    """Files that a killed build was in the middle of."""
    for path in [*work.rglob(".*.partial"), *(work / PIECES).glob("partial_*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _unused(place: Path) -> Path:
    """A name beside ``place`` that nothing has."""
    number = 1
    while (aside := place.with_name(f"{place.name}.damaged-{number}")).exists():
        number += 1
    return aside
