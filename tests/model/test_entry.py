"""A command ends by a signal with one line and the shell's status, from its first line on; its streams may be gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_diffgemma.entry import Stopped, stoppable

BEGIN = "import os, signal, sys\nfrom nemo_diffgemma.entry import *\nenter()\n"
PRINTS = f"{BEGIN}for i in range(20000): print('line', i)\nstatus = status_of_output(printed={{}})\nsys.exit(status)"


def heed() -> None:
    """Whoever runs tests in the background has them ignore it, and what they start, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": heed}
    return subprocess.run([sys.executable, "-c", code], text=True, check=False, **(pipes | options))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_signal_before_anything_else(name: str) -> None:
    """Also where it comes while something is imported that catches everything."""
    done = run(f"{BEGIN}try: os.kill(os.getpid(), signal.{name})\nexcept BaseException: pass\nprint('went on')")
    assert done.returncode == 128 + getattr(signal, name)
    assert (done.stdout, done.stderr) == ("", f"stopped by {name}\n")


def test_an_ignored_signal_stays_ignored() -> None:
    code = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{BEGIN}os.kill(os.getpid(), signal.SIGHUP)"
    assert run(code).returncode == 0
    assert run(f"{BEGIN}leave(); os.kill(os.getpid(), signal.SIGTERM)").returncode == 0


def test_work_is_stopped_by_an_exception_and_handlers_come_back() -> None:
    code = (
        f"{BEGIN}before = signal.getsignal(signal.SIGTERM)\ntry:\n    with stoppable(): os.kill(os.getpid(), 15)\n"
        "except Stopped as stopped: print(stopped.number, signal.getsignal(signal.SIGTERM) == before)"
    )
    assert run(code).stdout == "15 True\n"


def test_a_signal_that_a_library_makes_another_error_of() -> None:
    """As safetensors does, for whose Rust a call of Python's has failed, whatever the reason."""

    def read() -> None:
        try:
            signal.raise_signal(signal.SIGUSR1)
        except BaseException as error:
            raise ValueError("could not determine the shape") from error

    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Stopped, match="SIGUSR1"), stoppable():
        read()
    with pytest.raises(ValueError, match="of its own"), stoppable():  # it was the signal of another block
        raise ValueError("of its own")
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize("how", ["a full disk", "closed", "no reader"])
@pytest.mark.parametrize("printed", [True, False])
def test_standard_output_that_is_gone(how: str, printed: bool) -> None:
    """Progress may be lost, and that is said; a result that could not be printed is a failure."""
    code = PRINTS.format(printed)
    if how == "a full disk":
        with open("/dev/full", "w") as full:
            done = run(code, stdout=full)
        said = "No space left on device"
    elif how == "closed":
        done = run(code, stdout=None, preexec_fn=lambda: os.close(1))
        said = "closed from the start"
    else:
        reading, written = os.pipe()
        os.close(reading)
        done = run(code, stdout=written)
        os.close(written)
        said = "Broken pipe"
    assert done.returncode == (1 if printed else 0)
    if not printed:
        assert done.stderr == f"warning: standard output was gone ({said}): the work is done, lines were dropped\n"
    else:
        line = f"error: standard output: {said}; fix: send it elsewhere\n"
        assert done.stderr == ("" if how == "no reader" else line)


def test_files_do_not_get_the_numbers_of_streams_that_are_closed() -> None:
    code = f"{BEGIN}file = open('/dev/null'); sys.exit(file.fileno())"
    done = run(code, stdin=None, stdout=None, stderr=None, preexec_fn=lambda: os.closerange(0, 3))
    assert done.returncode > 2


def test_standard_error_that_is_gone() -> None:
    with open("/dev/full", "w") as full:
        assert (
            run(f"{BEGIN}print('x', file=sys.stderr, flush=True); print('went on')", stderr=full).stdout == "went on\n"
        )


def test_names_and_prints_are_utf_8_in_any_locale(tmp_path: Path) -> None:
    code = f"{BEGIN}print(sys.argv[1], os.path.exists(sys.argv[1]), sys.getfilesystemencoding())"
    (path := tmp_path / "größe").touch()
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code, path], env=plain, capture_output=True, check=True)
    assert done.stdout.decode() == f"{path} True utf-8\n"


def test_the_folder_one_is_in_was_removed(tmp_path: Path) -> None:
    """The check is this product's own: mathematical libraries end the process with words of theirs."""
    (gone := tmp_path / "gone").mkdir()
    root = Path(__file__).parents[2]
    code = f"import os, sys\nsys.path.insert(0, {str(root)!r})\nos.rmdir(os.getcwd())\n{BEGIN}print('went on')"
    done = run(code, cwd=gone)
    said = "error: the folder you are in: No such file or directory; fix: cd to a folder that there is\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
