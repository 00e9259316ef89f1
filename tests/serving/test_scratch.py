"""The folder that a server works in: a killed server's is removed by the next, a living one's is not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nemo_diffgemma.errors import FieldError
from triton_repo.launcher.scratch import Scratch

OTHER = """
import time
from pathlib import Path
from triton_repo.launcher.scratch import Scratch
scratch = Scratch()
Path("/dev/shm", scratch.shm_prefix + "region").touch()
print(scratch.path, scratch.shm_prefix, flush=True)
time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # it keeps what it found first
    return tmp_path


@contextmanager
def other() -> Iterator[tuple[subprocess.Popen[str], Path, Path]]:
    """Another process that has a scratch folder, the folder, and a region of shared memory that is its own."""
    with subprocess.Popen([sys.executable, "-c", OTHER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path, prefix = process.stdout.readline().split()
        try:
            yield process, Path(path), Path("/dev/shm", f"{prefix}region")
        finally:
            process.kill()


def test_it_goes_with_its_owner(temporary: Path) -> None:
    scratch = Scratch()
    region = Path("/dev/shm", f"{scratch.shm_prefix}x")
    region.touch()
    assert [scratch.path] == list(temporary.iterdir())
    assert scratch.path.stat().st_mode & 0o777 == 0o700
    scratch.remove()
    assert not list(temporary.iterdir())
    assert not region.exists()


def test_what_a_killed_process_left_is_removed_and_what_lives_stays(temporary: Path) -> None:
    with other() as (process, left, region), other() as (_, living, in_use):
        (left / "backends").mkdir()
        foreign = temporary / "diffgemma-serve-notes"  # a user's own, by chance of such a name
        foreign.mkdir()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert left.is_dir()
        scratch = Scratch()
        assert not left.exists()
        assert not region.exists()
        assert living.is_dir()
        assert in_use.exists()
        assert foreign.is_dir()
        scratch.remove()
    Scratch().remove()
    assert [foreign] == list(temporary.iterdir())
    assert not in_use.exists()


@pytest.mark.parametrize("name", ["TMPDIR", "TEMP", "TMP"])
@pytest.mark.parametrize("what", ["missing", "file", "link", "file/in it"])
def test_a_folder_that_cannot_be_used_is_not_exchanged(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    (temporary / "file").touch()
    (temporary / "link").symlink_to("missing")
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setenv(name, str(temporary / what))
    said = f"{name}: '{temporary / what}' cannot be used; allowed: a folder that exists and can be written; fix: set"
    with pytest.raises(FieldError, match=re.escape(said)):
        Scratch()


def test_a_folder_that_is_spelt_another_way(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", f"{temporary}/../{temporary.name}/")
    scratch = Scratch()
    assert [scratch.path] == list(temporary.iterdir())
    scratch.remove()


def test_a_folder_that_no_program_can_be_run_from(temporary: Path) -> None:
    """A file system that is mounted so, in a mount namespace of its own."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = "from triton_repo.launcher.scratch import Scratch; Scratch()"
    mount = f"mount -t tmpfs -o noexec none {temporary} && exec {sys.executable} -c '{script}'"
    done = subprocess.run(["unshare", *user, "--mount", "sh", "-c", mount], capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "permission denied" in done.stderr.lower():
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    assert done.stderr.splitlines()[-1].endswith(
        f"TMPDIR: '{temporary}' cannot be used; allowed: a folder that programs can be run from (it is mounted noexec);"
        " fix: set TMPDIR to another folder, for instance TMPDIR=$HOME"
    )
