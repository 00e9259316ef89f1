"""A case, and what becomes of one."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

_MODULES = {"diffgemma-train": "nemo_diffgemma.training", "diffgemma-engine": "trtllm_build"}
_ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Case:
    """One situation.

    Args:
        name: in words.
        command: program and arguments; ``{base}`` is a tiny checkpoint with a tokenizer.
        files: the user's, by their path in the folder the command runs in.
        said: regular expression that what it prints must match.
        status: exit status it must end with.
        first: commands that must have ended well in the folder before.
        beside: a command that runs at the same time, from before this one begins until it has ended.
        stop: a signal sent as soon as a line of output matches the pattern.
        before: what befalls the folder after ``first`` has run.
        setup: more of a situation than files, given the folder.
        check: raises AssertionError when what is left is not right, given the folder.
        environment: variables beside the usual ones.
        largest_file: bytes past which the kernel refuses to write a file, as it does on a full volume.
    """

    name: str
    command: str
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    said: str = ""
    status: int = 0
    first: tuple[str, ...] = ()
    beside: str = ""
    stop: tuple[signal.Signals, str] | None = None
    before: Callable[[Path], None] | None = None
    setup: Callable[[Path], None] | None = None
    check: Callable[[Path], None] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    largest_file: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Args:
        status: exit status.
        message: last line that was printed.
        left: what lies in the folder that the user had not put there.
        wrong: what is not as it must be; empty when all is.
    """

    status: int
    message: str
    left: tuple[str, ...]
    wrong: tuple[str, ...]


def play(case: Case, folder: Path, base: Path) -> Outcome:
    """Run a case in ``folder``, which is empty; ``base`` is a checkpoint."""
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    if case.setup is not None:
        case.setup(folder)
    mine = _everything(folder)
    for command in case.first:
        process = _start(command, folder, base, case)
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
    if case.before is not None:
        case.before(folder)
    other = _start(case.beside, folder, base, case) if case.beside else None
    if other is not None:
        _read_until(other, r"^step 1/")
    process = _start(case.command, folder, base, case)
    printed = ""
    if case.stop is not None:
        number, pattern = case.stop
        printed = _read_until(process, pattern)
        process.send_signal(number)
    out, err = process.communicate(timeout=900)
    if other is not None:
        other.kill()
        other.communicate()
    return _judge(case, folder, mine, process.returncode, printed + out, err)


def _judge(case: Case, folder: Path, mine: dict[str, str], status: int, out: str, err: str) -> Outcome:
    wrong = []
    if status != case.status:
        wrong.append(f"status {status}, not {case.status}")
    if not re.search(case.said, out + err, re.MULTILINE):
        wrong.append(f"does not say {case.said!r}")
    if "Traceback" in err:
        wrong.append("a traceback")
    if case.status == 2 and len(err.splitlines()) != 1:
        wrong.append(f"{len(err.splitlines())} lines of error")
    now = _everything(folder)
    touched = [name for name, content in mine.items() if now.get(name) != content]
    if touched:
        wrong.append(f"changed or removed: {', '.join(touched[:3])}")
    if case.check is not None:
        try:
            case.check(folder)
        except AssertionError as error:
            wrong.append(str(error).splitlines()[0] if str(error) else "not left as it must be")
    lines = (err or out).strip().splitlines() or [""]
    left = sorted({name.split("/")[0] for name in now.keys() - mine.keys()})
    return Outcome(status, lines[-1], tuple(left), tuple(wrong))


def _start(command: str, folder: Path, base: Path, case: Case) -> subprocess.Popen[str]:
    program, *arguments = shlex.split(command.format(base=base, folder=folder))
    return subprocess.Popen(
        [sys.executable, "-m", _MODULES[program], *arguments],
        cwd=folder,
        env=os.environ | _ENVIRONMENT | case.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        umask=0o022,
        preexec_fn=None if case.largest_file is None else partial(_limit, case.largest_file),
    )


def _limit(largest_file: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))


def _read_until(process: subprocess.Popen[str], pattern: str) -> str:
    assert process.stdout is not None
    printed, end = "", time.monotonic() + 600
    while time.monotonic() < end:
        line = process.stdout.readline()
        printed += line
        if not line or re.search(pattern, line):
            return printed
    return printed


def _everything(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder, by its path; links by where they lead."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
