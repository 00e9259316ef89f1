"""The tritonserver process: where its files are, how it is started, how it is ended with all it started."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.processes import end_with_parent
from triton_repo.tensors import ALLOCATOR

LOOPBACK = "127.0.0.1"
BINARY_VARIABLE = "TRITON_SERVER"
_STUB = "triton_python_backend_stub"
# Bytes of address space for each of its threads' stacks: with Linux's usual 8 MiB an HTTP body of 8 MB, or JSON nested
# some ten thousand deep, would end tritonserver.
_STACK = 2**30
# nvidia-pytriton's version -> the tritonserver in it, which says nowhere what it is before it runs.
_BUNDLED = {"0.7.0": "2.51.0"}


@dataclass(frozen=True)
class Installation:
    """A tritonserver with its python backend.

    Args:
        binary: the executable.
        backends: folder of backends.
        stub: the python backend's process for this Python version, where it lies apart from the backend.
        libraries: what nvidia-pytriton's stub loads: a copy of it does not find them.
        version: as it names itself, ``2.73.0``; None where nothing beside it says so.
    """

    binary: Path
    backends: Path
    stub: Path | None
    libraries: Path | None
    version: str | None

    @classmethod
    def find(cls) -> Installation:
        """Look at ``$TRITON_SERVER``, then on ``PATH`` (NVIDIA's container), then in nvidia-pytriton.

        Raises:
            FieldError: when there is none, or none for this Python version, or its stub cannot load this Python.
        """
        library = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
        allowed = f"a Python with its shared library, {library}: tritonserver's stub loads it"
        fix = f"Debian, Ubuntu: apt install {library.partition('.so')[0]}; pyenv: install it with --enable-shared"
        require(_loads(library), field="python", value=sys.executable, allowed=allowed, fix=fix)
        named = os.environ.get(BINARY_VARIABLE)
        package = importlib.util.find_spec("pytriton")
        pytriton = Path(package.origin).parent if package and package.origin else None
        libraries = pytriton.with_name("nvidia_pytriton.libs") if pytriton else None
        if found := named or shutil.which("tritonserver"):
            binary = Path(found)
            require(
                binary.is_file(),
                field=BINARY_VARIABLE,
                value=found,
                allowed="the path of a tritonserver binary",
                fix="correct or unset it",
            )
            root = binary.resolve().parent.parent
        else:
            if pytriton is None:
                fix = "pip install 'diffgemma[serve]', or run in NVIDIA's Triton container"
                raise FieldError(
                    field=BINARY_VARIABLE, value=None, allowed="a tritonserver binary, here or on PATH", fix=fix
                )
            root = pytriton / "tritonserver"
            binary = root / "bin" / "tritonserver"
        stubs = root / "python_backend_stubs"
        if not stubs.is_dir():
            return cls(binary, root / "backends", None, libraries, _version(root, pytriton))
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = stubs / version / _STUB
        available = ", ".join(sorted(path.name for path in stubs.iterdir()))
        require(
            stub.is_file(),
            field="python",
            value=version,
            allowed=f"a Python that {root} has a stub for: {available}",
            fix="use one of them",
        )
        return cls(binary, root / "backends", stub, libraries, _version(root, pytriton))

    def backend_directory(self, directory: Path) -> Path:
        """A copy of the python backend with its stub beside it (3 MB), for one run of a server.

        A copy, since tritonserver gives the stub mode 0100, through a link too, with which nobody else can run it; and
        Python writes bytecode beside what the stub imports.

        Raises:
            FieldError: when there is no python backend, or one that this user cannot read.
            OSError: when it cannot be written.
        """
        source = self.backends / "python"
        stub = self.stub or source / _STUB
        fix = f"install tritonserver with it, or correct {BINARY_VARIABLE}"
        require(
            stub.is_file(), field="python backend", value=str(stub), allowed="the backend's process, a file", fix=fix
        )
        for path in (*source.iterdir(), stub):
            fix = f"chmod -R a+rX {source} {stub}"
            require(
                os.access(path, os.R_OK),
                field="python backend",
                value=str(path),
                allowed="a file that this user may read",
                fix=fix,
            )
        python = shutil.copytree(source, directory / "python", ignore=shutil.ignore_patterns("__pycache__", _STUB))
        shutil.copyfile(stub, python / _STUB)
        (python / _STUB).chmod(0o700)
        return directory


class Process:
    """A running tritonserver, in a process group of its own: a Ctrl-C in the terminal reaches only the launcher.

    Args:
        installation: what to run.
        options: its command line, without the binary.
        environment: variables to add.
        directory: where it runs: the stub looks for Python modules there first, so not where the user happens to be.
        log: file that gets its output; None for standard error.
    """

    def __init__(
        self,
        installation: Installation,
        options: Sequence[str],
        environment: dict[str, str],
        directory: Path,
        log: Path | None,
    ):
        scripts = str(Path(sys.executable).parent)
        # The stub embeds the Python it finds first on PATH, and must load that Python's own library.
        libraries = [sysconfig.get_config_var("LIBDIR"), installation.libraries, os.environ.get("LD_LIBRARY_PATH")]
        with open(2 if log is None else log, "ab", closefd=log is not None) as output:
            self._process = subprocess.Popen(
                [str(installation.binary), *options],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(_prepare, os.getpid()),
                env={
                    **ALLOCATOR,
                    **os.environ,
                    **environment,
                    "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
                    "LD_LIBRARY_PATH": os.pathsep.join(str(folder) for folder in libraries if folder),
                },
            )
        self.pid = self._process.pid

    def returncode(self) -> int | None:
        """Exit status; None while it runs."""
        return self._process.poll()

    def stub_died(self) -> bool:
        """Whether a model's process has died; tritonserver still calls itself ready then."""
        children = (path.read_text().split() for path in Path(f"/proc/{self.pid}/task").glob("*/children"))
        return any(_is_dead_stub(pid) for pids in children for pid in pids)

    def stop(self, budget_s: float) -> None:
        """End it: SIGTERM, after ``budget_s`` seconds SIGKILL; then the stubs it left behind.

        A client that keeps its stream open holds a terminating tritonserver up for as long as it likes.
        """
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(budget_s)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                # A second Ctrl-C must not leave it running.
                self._process.kill()
                self._process.wait()
        self._end_group(0.5)

    def _end_group(self, budget_s: float) -> None:
        """Kill what is left of the process group, which only holds what this server started, and wait for it.

        A stub ignores SIGTERM: it waits for a word from its server.
        """
        deadline = time.monotonic() + budget_s
        try:
            os.killpg(self.pid, signal.SIGKILL)
            while time.monotonic() < deadline:
                os.killpg(self.pid, 0)
                time.sleep(0.02)
        except ProcessLookupError:
            return


def _prepare(launcher: int) -> None:
    """What is to hold for tritonserver before it is one."""
    # a launcher that was killed gives it no time: with a stream open SIGTERM would not end it
    end_with_parent(signal.SIGKILL, launcher)
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK if hard == resource.RLIM_INFINITY else min(_STACK, hard), hard))


def _version(root: Path, pytriton: Path | None) -> str | None:
    """Of the tritonserver in ``root``: NVIDIA's image writes it into a file there, nvidia-pytriton does not."""
    file = root / "TRITON_VERSION"
    if file.is_file():
        return file.read_text().strip()
    if pytriton is not None and root == pytriton / "tritonserver":
        return _BUNDLED.get(importlib.metadata.version("nvidia-pytriton"))
    return None


def _is_dead_stub(pid: str) -> bool:
    """Whether it is a model's process that has ended; tritonserver also starts others, which end at once."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except FileNotFoundError:
        return False
    return rest.split()[0] == "Z" and _STUB.startswith(name)


def _loads(library: str) -> bool:
    for path in (Path(str(sysconfig.get_config_var("LIBDIR"))) / library, library):
        try:
            ctypes.CDLL(str(path))
        except OSError:
            continue
        return True
    return False
