"""`make setup`: with which Python, what is said when it fails, and that nothing is marked as installed that is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# what a machine's own settings for pip would change
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "MAKE"))}
CLEAN["PIP_CONFIG_FILE"] = os.devnull
TOOLS = ("bash", "sed", "dirname", "env")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What `make setup` needs of a clone."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    (folder / "nemo_diffgemma").mkdir()
    for name in ("Makefile", "pyproject.toml", "nemo_diffgemma/files.py", "nemo_diffgemma/errors.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def make(clone: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", f"PYTHON={sys.executable}", *arguments]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False, env=CLEAN | variables)


def environment(
    clone: Path, *arguments: str | Path, path: str | Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [".ci/environment", *map(str, arguments)]
    variables = CLEAN | {"PIP_NO_INDEX": "1"} | ({} if path is None else {"PATH": str(path)})
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False, env=variables)


def tiny_wheel(folder: Path) -> Path:
    """A package with nothing but its name."""
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    return wheel


@pytest.mark.slow  # makes a virtual environment: what is tested is its making
@pytest.mark.parametrize(("target", "folder"), [("setup", ".venv"), ("setup-edge-llm", ".venv-edge-llm")])
def test_without_a_network_set_up_fails_and_says_why(clone: Path, target: str, folder: str) -> None:
    # nothing listens there
    done = make(clone, target, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="1")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {folder}: torch: the package index cannot be reached: ")
    assert (
        "Connection refused; fix: check the network and pip's settings (pip config list), or set PIP_INDEX_URL" in line
    )
    assert "ERROR: No matching distribution found for torch==2.13.0" in done.stdout
    assert f"[setup] {folder} with Python 3." in done.stdout
    assert "[setup] torch (0.2 GB" in done.stdout
    assert not (clone / folder / ".installed").exists()
    assert "Traceback" not in done.stdout + done.stderr
    assert "[setup] NeMo" not in done.stdout, "it went on after a failure"


@pytest.mark.slow  # as above
def test_what_was_interrupted_is_made_anew_and_what_is_whole_is_kept(clone: Path, tmp_path: Path) -> None:
    folder, mark = clone / "env", clone / "env" / ".installed"
    given = (folder, sys.executable, "a test", "--", "install", "one package", tiny_wheel(tmp_path))
    folder.mkdir()
    (folder / "pyvenv.cfg").write_text("version = 3.11.0\n")
    (folder / "half a package").touch()
    done = environment(clone, *given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert mark.exists()
    assert not (folder / "half a package").exists()
    assert "[setup] one package" in done.stdout
    (folder / "of the user").touch()
    assert environment(clone, *given).returncode == 0
    assert (folder / "of the user").exists()
    # a later step fails: no mark, though all was well before
    done = environment(clone, *given, "--", "install", "another", "no-such-package")
    assert done.returncode == 1
    wanted = f"error: {folder}: another: No matching distribution found for no-such-package (status 1); fix: "
    assert done.stderr.startswith(wanted)
    assert done.stderr.count("\n") == 1
    assert not mark.exists()
    assert "no-such-package" in (folder / "setup.log").read_text()


def test_a_disk_that_is_full(clone: Path) -> None:
    (clone / "small").mkdir()
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = f"mount -t tmpfs -o size=6m none small && exec .ci/environment small/env {sys.executable} 'a test'"
    command = ["unshare", *user, "--mount", "sh", "-c", script]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False, env=CLEAN)
    if not done.stdout:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: small/env: pip: no space left on the device of this folder or of ")
    assert done.stderr.count("\n") == 1


def test_a_folder_of_somebody_s_is_refused(clone: Path) -> None:
    (clone / "env").mkdir()
    (clone / "env" / "notes").write_text("mine")
    done = environment(clone, "env", sys.executable, "a test")
    assert done.returncode == 2
    assert done.stderr.startswith("error: environment: 'env' cannot be used; allowed: a virtual environment, an empty")
    assert (clone / "env" / "notes").read_text() == "mine"


# -- which Python ------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A PATH without any Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return folder


def put(folder: Path, name: str, version: str, lacking: str = "") -> None:
    """Something that answers as a Python of that version; started in earnest, it prints its path and arguments."""
    script = f'#!/bin/sh\nif [ "$1" = -c ]; then echo {version}; echo {lacking}; exit; fi\necho started "$0" "$@"\n'
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def test_the_first_that_will_do_is_taken(clone: Path, path: Path) -> None:
    put(path, "python3", "3.10")
    put(path, "python3.11", "3.11", "ensurepip")  # Debian's, without its package python3.11-venv
    put(path, "python", "3.12")
    done = environment(clone, "env", "", "a test", path=path)
    assert done.stdout == f"started {path}/python .ci/environment.py env a test\n", done.stderr
    put(path, "python3.12", "3.12")
    assert environment(clone, "env", "", "a test", path=path).stdout.startswith(f"started {path}/python3.12 ")
    put(path, "python3.11", "3.11")
    assert environment(clone, "env", "", "a test", path=path).stdout.startswith(f"started {path}/python3.11 ")


def test_none_that_will_do(clone: Path, path: Path) -> None:
    put(path, "python3", "3.13")
    put(path, "python3.11", "")  # a version manager's, for a version that is not there
    put(path, "python", "2.7")
    done = environment(clone, "env", "", "a test", path=path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: PYTHON: python3.11 (does not run), python3.12 (not found), python3 (3.13), python (2.7) cannot be used;"
        " allowed: Python 3.11 or 3.12 with venv, ensurepip and its shared library;"
        " fix: make PYTHON=/path/to/python3.11 ..., or install it"
        " (Debian, Ubuntu: apt install python3.11-venv libpython3.11;"
        " pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install 3.11)\n"
    )


@pytest.mark.parametrize(
    ("version", "lacking", "reason"),
    [
        ("3.10", "", "3.10"),
        ("3.12", "venv and ensurepip", "3.12 without venv and ensurepip"),
        ("3.11", "libpython3.11.so.1.0", "3.11 without libpython3.11.so.1.0"),
        ("", "", "does not run"),
    ],
)
def test_one_that_is_asked_for_and_will_not_do(
    clone: Path, path: Path, version: str, lacking: str, reason: str
) -> None:
    """No other is taken in its place."""
    put(path, "python3.11", "3.11")
    put(path, "mine", version, lacking)
    done = environment(clone, "env", "mine", "a test", path=path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: PYTHON: mine ({reason}) cannot be used; allowed: Python 3.11 or 3.12 ")


def test_another_python_makes_the_environment_anew(clone: Path, path: Path) -> None:
    put(path, "python3.11", "3.11")
    put(path, "python3.12", "3.12")
    made = clone / ".venv"
    (made / "bin").mkdir(parents=True)
    put(made / "bin", "python", "3.12")
    (made / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.12.4\n")
    (made / ".installed").touch()

    def stale(python: str) -> str:
        return environment(clone, "--stale", ".venv", python, path=path).stdout.strip()

    assert (stale(""), stale("python3.12"), stale("python3.11")) == ("", "", ".venv/.installed")
    # without a word the environment's own is kept
    assert environment(clone, ".venv", "", "a test", path=path).stdout.startswith(f"started {made}/bin/python ")
    (made / "bin" / "python").unlink()
    assert stale("") == ".venv/.installed"
    assert environment(clone, ".venv", "", "a test", path=path).stdout.startswith(f"started {path}/python3.11 ")
