"""Make a virtual environment, or renew it; nothing is marked as installed that is not whole.

    python .ci/environment.py FOLDER WHAT [-- install WHAT ARGUMENT_OF_PIP...] [-- run WHAT WORD_OF_A_COMMAND...] ...

``FOLDER/.installed`` is the mark. An environment without it is made anew: what an interrupted pip leaves cannot be told
from what is whole. What pip says is in ``FOLDER/setup.log``. Only the standard library: nothing is installed yet.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parents[1]))

from nemo_diffgemma.errors import FieldError, require  # noqa: E402
from nemo_diffgemma.files import locked  # noqa: E402

MARK = ".installed"
_SHOWN_MB = 20  # downloads from this size on are shown
_DOWNLOAD = re.compile(r"(Downloading|Using cached) \S*?([^/\s]+?-[^-/\s]+)-\S+ \((.*) ([MG])B\)")
_UNREACHABLE = re.compile(r"Retrying .* after connection broken by '(.*?)['\")]*: \S+$")


class Failed(RuntimeError):
    """A step that went wrong: one line, with the remedy."""


def main(arguments: list[str]) -> int:
    """Returns 0, 1 when a step failed, 2 for a mistake, 130 after Ctrl-C."""
    first, *steps = [list(words) for is_end, words in groupby(arguments, lambda word: word == "--") if not is_end]
    folder, what = Path(first[0]), first[1]
    try:
        make(folder, what, steps)
    except (Failed, FieldError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, FieldError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def make(folder: Path, what: str, steps: list[list[str]]) -> None:
    """Make the environment, or renew one that this Python made, unless another process does so meanwhile.

    Raises:
        Failed: when a step did; the environment has no mark then.
        FieldError: when something else lies at ``folder``.
    """
    begun = time.time()
    busy = f"[setup] another process makes {folder}; waiting for it"
    with locked(Path("build", f"{folder.name}.lock"), lambda: say(busy), lambda: None):
        mark = folder / MARK
        if mark.exists() and mark.stat().st_mtime > begun:
            return
        ours = f"{sys.version_info.major}.{sys.version_info.minor}"
        kept = mark.exists() and os.access(folder / "bin" / "python", os.X_OK) and made_by(folder) == ours
        mark.unlink(missing_ok=True)
        if not kept:
            foreign = folder.exists() and not (folder / "pyvenv.cfg").is_file() and any(folder.iterdir())
            allowed = "a virtual environment, an empty folder, or a path where nothing is"
            require(not foreign, "environment", str(folder), allowed, f"move {folder} away; nothing in it was changed")
            say(f"[setup] {folder} with Python {sys.version.split()[0]}: {what}")
            run(folder, "venv", [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)])
            # venv itself would keep its words
            run(folder, "pip", [str(folder / "bin" / "python"), "-Im", "ensurepip", "--upgrade", "--default-pip"])
        for kind, text, *words in steps:
            say(f"[setup] {text}")
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
            run(folder, text, [*pip, "--progress-bar=off", *words] if kind == "install" else words)
        mark.touch()
        say(f"[setup] {folder} is ready after {time.time() - begun:.0f} s")


def made_by(folder: Path) -> str:
    """Version (``3.11``) of the Python that made an environment; empty when it cannot be told."""
    found = re.search(r"^version\s*=\s*(\d+\.\d+)", (folder / "pyvenv.cfg").read_text(), re.MULTILINE)
    return found[1] if found else ""


def run(folder: Path, text: str, command: list[str]) -> None:
    """Run one command: shows large downloads as they begin, and what it calls errors.

    Raises:
        Failed: when it ends with another status than 0.
    """
    lines: list[str] = []
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if shown := progress(line.strip()):
                say(shown)
    try:
        with (folder / "setup.log").open("a") as log:
            log.writelines(lines)
    except OSError:
        pass  # the disk is full, say: that is what went wrong, and is said below
    if process.returncode != 0:
        raise Failed(
            f"{folder}: {text.partition(' (')[0]}: {why([line.strip() for line in lines], process.returncode)}"
        )


def progress(line: str) -> str | None:
    """What is shown of a line of pip."""
    if found := _DOWNLOAD.match(line):
        size = float(found[3]) * (1000 if found[4] == "G" else 1)
        return f"[setup]   {found[1].lower()} {found[2]}, {size:.0f} MB" if size >= _SHOWN_MB else None
    if line.startswith("Installing collected packages: ") and (others := line.count(",")):
        return f"[setup]   unpacking {others + 1} packages"
    return line if line.startswith("ERROR: ") else None


def why(lines: list[str], status: int) -> str:
    """One line about a command that failed, with the remedy."""
    again = "then the same command again"
    text = "\n".join(lines)
    if "No space left on device" in text:
        temporary = os.environ.get("TMPDIR") or "/tmp"
        return f"no space left on the device of this folder or of {temporary}; fix: make room, {again}"
    unreachable = [found[1].rpartition(">: ")[2] for line in lines if (found := _UNREACHABLE.search(line))]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if unreachable and errors:
        return (
            f"the package index cannot be reached: {unreachable[-1]}; fix: check the network and pip's settings "
            f"(pip config list), or set PIP_INDEX_URL to an index that can be reached, {again}"
        )
    said = (errors or [line for line in lines if line] or ["it said nothing"])[-1]
    return f"{said} (status {status}); fix: what is said above or in its setup.log, {again}"


def say(line: str) -> None:
    """Print at once: a pipe would keep it for later."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
