"""Files appear whole or not at all; a folder is replaced only when everything in it is ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemo_diffgemma.entry import Stopped
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.files import (
    check_replaceable,
    file_entries,
    locked,
    new_file,
    partial_directory,
    put_in_place,
    write_json,
    write_text,
)

MARKER = "made.json"


def prepare(target: Path, content: str, token: str = "me") -> Path:
    partial = partial_directory(target, token)
    partial.mkdir()
    write_text(partial / "weights", content)
    write_json(partial / MARKER, {"files": file_entries(partial, MARKER)})
    return partial


def make(target: Path, content: str) -> None:
    put_in_place(prepare(target, content), target, MARKER, "output")


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_we_wrote_is_replaced_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    make(tmp_path / "model", "first")
    make(tmp_path / "model", "second")
    assert (tmp_path / "model" / "weights").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["model.old", "model.partial", ".model.old", ".model.partial"])
def test_folders_beside_it_are_not_touched(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("mine")
    make(tmp_path / "model", "first")
    make(tmp_path / "model", "second")
    assert (tmp_path / name / "mine").read_text() == "mine"


def test_an_empty_folder_and_a_link_to_a_folder_of_ours_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty", "first")
    (tmp_path / "link").symlink_to("empty")
    make(tmp_path / "link", "second")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty" / "weights").read_text() == "second"


@pytest.mark.parametrize(
    "kind", ["file", "foreign", "added", "edited", "edited, large", "nested", "broken marker", "link inside"]
)
def test_anything_of_somebody_elses_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "model"
    if kind == "file":
        target.write_text("mine")
    elif kind == "foreign":
        target.mkdir()
        (target / "thesis.tex").write_text("mine")
    else:
        make(target, "first" if kind != "edited, large" else "a" * 2**21)
        if kind == "added":
            (target / "notes").write_text("mine")
        elif kind == "edited":
            (target / "weights").write_text("tsrif")  # as long as it was
        elif kind == "edited, large":
            (target / "weights").write_text("b" + "a" * (2**21 - 1))
        elif kind == "nested":
            (target / "more").mkdir()
            (target / "more" / "notes").write_text("mine")
        elif kind == "broken marker":
            (target / MARKER).write_text("{")
        else:
            (target / "data").symlink_to(tmp_path)
    before = everything(tmp_path)
    with pytest.raises(FieldError, match=rf"^output: '{target}.*nothing was changed"):
        check_replaceable(target, MARKER, "output")
    assert everything(tmp_path) == before
    partial = prepare(target, "second")
    with pytest.raises(FieldError, match=r"^output: "):
        put_in_place(partial, target, MARKER, "output")
    assert {k: v for k, v in everything(tmp_path).items() if not k.startswith(partial.name)} == before


def test_the_folder_one_is_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for target in (Path("."), Path(".."), tmp_path / "a" / "b"):
        with pytest.raises(FieldError, match=r"^output: .*the one you are in"):
            check_replaceable(target, MARKER, "output")


def test_what_a_killed_process_had_moved_aside_comes_back(tmp_path: Path) -> None:
    """Between the two renames nothing is at the target: the old folder waits beside it."""
    target = tmp_path / "model"
    make(target, "first")
    partial = prepare(target, "second")
    target.rename(partial.with_suffix(".old"))
    check_replaceable(target, MARKER, "output")
    assert (target / "weights").read_text() == "first"
    put_in_place(partial, target, MARKER, "output")
    assert (target / "weights").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("renames", [1, 2])
def test_a_signal_right_after_a_rename(renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the command as a signal does, with the folder before or the one after in place, never without one."""
    target, usual, done = tmp_path / "model", Path.rename, 0
    make(target, "first")
    partial = prepare(target, "second")

    def rename(path: Path, there: Path) -> Path:
        nonlocal done
        result, done = usual(path, there), done + 1
        if done == renames:
            raise Stopped(15)
        return result

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        with pytest.raises(Stopped):
            put_in_place(partial, target, MARKER, "output")
    assert (target / "weights").read_text() == ("first", "second")[renames - 1]


def test_a_copy_of_mine_beside_it_stays(tmp_path: Path) -> None:
    target = tmp_path / "model"
    make(target, "first")
    target.rename(tmp_path / ".model.mine.old")
    check_replaceable(target, MARKER, "output")
    assert [path.name for path in tmp_path.iterdir()] == [".model.mine.old"]


@pytest.mark.parametrize("marker", ["a pipe", "a link to itself", "a folder", "brackets"])
def test_a_marker_that_is_no_file_of_ours(marker: str, tmp_path: Path) -> None:
    """A pipe would be waited for."""
    make(target := tmp_path / "model", "first")
    (path := target / MARKER).unlink()
    if marker == "a pipe":
        os.mkfifo(path)
    elif marker == "a link to itself":
        path.symlink_to(MARKER)
    elif marker == "a folder":
        path.mkdir()
    else:
        path.write_text("[" * 100_000)
    with pytest.raises(FieldError, match=rf"^output: '{target} holds .*nothing was changed"):
        check_replaceable(target, MARKER, "output")


def test_a_lock_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(OSError, match="No such device"), locked(tmp_path / "lock", print, print):
        pass
    assert (tmp_path / "lock").is_fifo()


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_modes_follow_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_file_that_fails_half_way_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "before")
    with pytest.raises(TypeError), new_file(path) as file:
        file.writelines([b"half", 3])  # type: ignore[list-item]
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_json_is_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())
