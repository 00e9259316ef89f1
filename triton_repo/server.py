"""Start a real tritonserver over the model repository, wait until it generates, stop it; ``diffgemma-serve``."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from nemo_diffgemma.errors import FieldError
from triton_repo.blocking import BlockingClient
from triton_repo.client import GenerationError
from triton_repo.config import REPOSITORY
from triton_repo.tensors import ENGINE_VARIABLE
from triton_repo.tritonserver import HOST, Installation, Process, free_port

_TAIL_LINES = 30
# tritonserver waits this long for requests under way when it is told to end.
_EXIT_TIMEOUT_S = 5
_STOP_BUDGET_S = _EXIT_TIMEOUT_S + 3.0


class ServerFailed(RuntimeError):
    """tritonserver did not start, or ended by itself; the message ends with the tail of its log."""


class Server:
    """A running service on loopback; a context manager.

    Args:
        bundle: directory of an engine bundle.
        http_port, grpc_port, metrics_port: 0 takes any free port.
        log_file: where tritonserver's output goes; default: a file that lives as long as the server.
        start_timeout_s: seconds that loading and warm-up may take.
        progress: called with a line of text at each stage.

    Raises:
        FieldError: for a bundle that cannot run here, a port in use, a missing tritonserver; nothing was started.
        ServerFailed: when tritonserver ended or did not generate in time; nothing is left running.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        http_port: int = 8000,
        grpc_port: int = 8001,
        metrics_port: int = 8002,
        log_file: str | Path | None = None,
        start_timeout_s: float = 600.0,
        progress: Callable[[str], None] = lambda _line: None,
    ):
        self.bundle = Path(bundle).resolve()
        self._ports = {"--http-port": http_port, "--grpc-port": grpc_port, "--metrics-port": metrics_port}
        self._log_file = log_file
        self._start_timeout_s = start_timeout_s
        self._progress = progress
        self._directory: Path | None = None
        self._process: Process | None = None

    def __enter__(self) -> Self:
        from trtllm_build.bundle import Bundle  # torch takes seconds to import; --help should not

        started = time.monotonic()
        self._progress(f"checking the engine bundle {self.bundle}")
        Bundle.open(self.bundle)
        installation = Installation.find()
        self._ports = {option: free_port(option, port) for option, port in self._ports.items()}
        self._directory = Path(tempfile.mkdtemp(prefix="diffgemma-serve-"))
        try:
            self._start(installation, self._directory)
            self._progress("loading the engine")
            self._wait_until_ready(started + self._start_timeout_s)
            self._progress("warming up: one short generation")
            self.probe()
        except BaseException:
            self.close()
            raise
        self._progress(f"ready after {time.monotonic() - started:.1f} s")
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def grpc_url(self) -> str:
        """Host and port of the gRPC endpoint, as :class:`~triton_repo.client.Client` takes it."""
        return f"{HOST}:{self._ports['--grpc-port']}"

    @property
    def http_url(self) -> str:
        """Root of the HTTP endpoint."""
        return f"http://{HOST}:{self._ports['--http-port']}"

    @property
    def metrics_url(self) -> str:
        """Address of the Prometheus metrics."""
        return f"http://{HOST}:{self._ports['--metrics-port']}/metrics"

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        assert self._process is not None, "the server runs only inside its context"
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """File with tritonserver's output."""
        assert self._directory is not None, "the server runs only inside its context"
        return Path(self._log_file).resolve() if self._log_file else self._directory / "tritonserver.log"

    def probe(self) -> None:
        """One token, generated: a server whose model process has died still calls itself ready.

        Raises:
            ServerFailed: when it does not come.
        """
        try:
            with BlockingClient(self.grpc_url) as client:
                for _ in client.generate(input_ids=[1], max_tokens=1, max_denoising_steps=1, request_id="probe"):
                    pass
        except (GenerationError, FieldError) as error:
            raise ServerFailed(self._with_log(f"tritonserver does not generate: {error}")) from error

    def check(self) -> None:
        """Raise :class:`ServerFailed` when tritonserver or the model's process has ended."""
        assert self._process is not None, "the server runs only inside its context"
        if (status := self._process.returncode()) is not None:
            raise ServerFailed(self._with_log(f"tritonserver ended with status {status}"))
        if self._process.stub_died():
            raise ServerFailed(self._with_log("the model's process died"))

    def close(self) -> None:
        """Stop tritonserver and remove what it left; does nothing the second time."""
        process, self._process = self._process, None
        directory, self._directory = self._directory, None
        if process is not None:
            process.stop(_STOP_BUDGET_S)
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)

    def _start(self, installation: Installation, directory: Path) -> None:
        # A private copy: a model's process writes bytecode beside model.py, and an installed package may be read-only.
        models = shutil.copytree(REPOSITORY, directory / "models", ignore=shutil.ignore_patterns("__pycache__"))
        caches = directory / "caches"
        caches.mkdir()
        prefix = f"diffgemma_{os.getpid()}_{secrets.token_hex(4)}"
        options = [
            f"--model-repository={models}",
            f"--backend-directory={installation.backend_directory(directory / 'backends')}",
            f"--backend-config=python,shm-region-prefix-name={prefix}",
            f"--cache-directory={caches}",
            "--disable-auto-complete-config",
            "--allow-gpu-metrics=false",
            f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
            *(f"{option.replace('-port', '-address')}={HOST}" for option in self._ports),
            *(f"{option}={port}" for option, port in self._ports.items()),
        ]
        # Engine threads that spin while they wait starve tritonserver's own, and each other where cores are shared.
        environment = {
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
            ENGINE_VARIABLE: str(self.bundle),
        }
        self._progress(f"starting tritonserver on {HOST}: " + ", ".join(f"{o} {p}" for o, p in self._ports.items()))
        self._process = Process(installation, options, environment, directory, self.log_path, prefix)

    def _wait_until_ready(self, deadline: float) -> None:
        while not _answers(f"{self.http_url}/v2/health/ready"):
            self.check()
            if time.monotonic() > deadline:
                raise ServerFailed(self._with_log(f"tritonserver was not ready within {self._start_timeout_s:.0f} s"))
            time.sleep(0.1)

    def _with_log(self, message: str) -> str:
        text = self.log_path.read_text(errors="replace") if self.log_path.is_file() else ""
        # Its tables of options and models would fill the tail and say nothing.
        lines = [line for line in text.splitlines() if line and not line.startswith(("|", "+"))]
        return "\n".join([f"{message}; the end of its log:", *lines[-_TAIL_LINES:]])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """The ``diffgemma-serve`` command. Returns 0 after Ctrl-C or SIGTERM, 1 when the server fails, 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="diffgemma-serve", description="Serve an engine bundle with tritonserver.")
    parser.add_argument("--engine", required=True, metavar="DIR", help="engine bundle, as diffgemma-engine wrote it")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        about = f"{name} port on {HOST}, 0 for any free one (default: %(default)s)"
        parser.add_argument(f"--{name}-port", type=int, default=port, metavar="PORT", help=about)
    parser.add_argument("--log-file", metavar="FILE", help="append tritonserver's output to this file")
    parser.add_argument("--start-timeout", type=float, default=600.0, metavar="SECONDS", help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with Server(
            given.engine,
            http_port=given.http_port,
            grpc_port=given.grpc_port,
            metrics_port=given.metrics_port,
            log_file=given.log_file,
            start_timeout_s=given.start_timeout,
            progress=_say,
        ) as server:
            _say(f"serving on gRPC {server.grpc_url}, {server.http_url} and {server.metrics_url}; Ctrl-C stops it")
            _say(f"log: {server.log_path}")
            _say(f'try: diffgemma --url {server.grpc_url} "PROMPT"')
            while True:
                time.sleep(1)
                server.check()
    except KeyboardInterrupt:
        _say("stopped")
        return 0
    except FieldError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ServerFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
