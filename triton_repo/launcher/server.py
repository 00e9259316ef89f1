"""A real tritonserver over the model repository, and the OpenAI gateway in front of it: started, checked, stopped."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.processes import end_with_parent
from triton_repo.addresses import at, check_different, free_ports, is_ipv6, resolved, unproxied
from triton_repo.config import REPOSITORY, for_engine, render
from triton_repo.keys import read as read_keys
from triton_repo.launcher.exposure import addresses, check_version
from triton_repo.launcher.scrape import DIRECT, running_requests
from triton_repo.launcher.scratch import Scratch
from triton_repo.launcher.tls import ServerTls, answers
from triton_repo.launcher.tritonserver import LOOPBACK, Installation, Process
from triton_repo.tensors import (
    BACKEND_THREADS,
    DRAIN_VARIABLE,
    ENGINE_CPUS_VARIABLE,
    ENGINE_VARIABLE,
    LOG_PROMPTS_VARIABLE,
    MODEL,
)
from trtllm_build.hardware import available_cpus, beside_the_engine

_TAIL_LINES = 30
# When it is told to end, nothing runs any more, or the time for it is over; a client with an open stream would hold
# tritonserver up for as long as it likes.
_EXIT_TIMEOUT_S = 2
_STOP_BUDGET_S = 2.5
# The gauges of what runs are a little late.
_IDLE_LOOKS, _IDLE_LOOK_S = 2, 0.2
# Where this machine reaches what listens on all of its addresses.
_NEAR = {"0.0.0.0": LOOPBACK, "::": "::1"}
_ANSWER_S = 5.0
# What only an operator may do; a request for these needs a header that nobody is told.
_RESTRICTED = "model-repository,shared-memory,trace,logging"
# Clients ask by HTTP/2 pings whether a connection still stands, as often as they like, also while a request waits;
# tritonserver's own limits end the connection for it, and every stream on it.
_PINGS = (
    "--grpc-keepalive-permit-without-calls=1",
    "--grpc-http2-max-pings-without-data=0",
    "--grpc-http2-max-ping-strikes=0",
)


class ServerFailed(RuntimeError):
    """tritonserver or the gateway did not start, or ended by itself; the message ends with the tail of its log."""


class Server:
    """A running service; a context manager.

    Args:
        bundle: directory of an engine bundle.
        host: address that it listens on, or a name of one.
        http_port, grpc_port, metrics_port: 0 takes any free port.
        openai_port: the gateway's; None: no gateway.
        openai_options: further options of the gateway's command line.
        tls: for gRPC and the gateway. tritonserver's HTTP cannot, and stays on loopback then.
        api_key_file: keys that the gateway asks for. tritonserver's gRPC, which cannot, then stays on loopback unless
            ``tls`` asks for certificates.
        insecure: listen beyond loopback although anybody may ask there.
        allow_old_triton: listen beyond loopback with a tritonserver that has known vulnerabilities.
        log_file: where the output of tritonserver and gateway goes; default: a file that lives as long as the server;
            ``-``: standard error.
        log_prompts: write prompts to the log.
        start_timeout_s: seconds that loading and warm-up may take.
        progress: called with a line of text at each stage.

    Raises:
        FieldError: for a bundle that cannot run here, a port in use, a missing tritonserver, what would be open to
            anybody; nothing was started.
        ServerFailed: when tritonserver ended or did not generate in time; nothing is left running.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        host: str = LOOPBACK,
        http_port: int = 8000,
        grpc_port: int = 8001,
        metrics_port: int = 8002,
        openai_port: int | None = None,
        openai_options: Sequence[str] = (),
        tls: ServerTls | None = None,
        api_key_file: Path | None = None,
        insecure: bool = False,
        allow_old_triton: bool = False,
        log_file: str | Path | None = None,
        log_prompts: bool = False,
        start_timeout_s: float = 600.0,
        progress: Callable[[str], None] = lambda _line: None,
    ):
        needs = tls is None or openai_port is None or tls.ca is not None
        require(
            needs,
            field="--tls-ca",
            value=None,
            allowed="with --openai-port and TLS, what signed --tls-cert",
            fix="pass --tls-ca FILE",
        )
        if api_key_file is not None:
            value, allowed = str(api_key_file), "used with --openai-port: tritonserver itself knows no keys"
            field, fix = "--api-key-file", "pass --openai-port PORT"
            require(openai_port is not None, field=field, value=value, allowed=allowed, fix=fix)
            read_keys(api_key_file)
        if log_file not in (None, "-"):
            path = Path(str(log_file))
            require(
                path.parent.is_dir() and not path.is_dir(),
                field="--log-file",
                value=str(path),
                allowed="a file in a folder that is there",
                fix="make the folder, or pass another file",
            )
        self.bundle = Path(bundle).resolve()
        self._host = resolved("--host", host)
        self._near = _NEAR.get(self._host, self._host)
        self._hosts = addresses(
            self._host,
            openai=openai_port is not None,
            keys=api_key_file is not None,
            client_ca=tls is not None and tls.client_ca is not None,
            insecure=insecure,
            say=progress,
        )
        self._ports = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
        if openai_port is not None:
            self._ports["openai"] = openai_port
        check_different({f"--{name}-port": port for name, port in self._ports.items()})
        self._openai_options = tuple(openai_options)
        self._api_key_file = api_key_file
        self._insecure = insecure
        self._allow_old_triton = allow_old_triton
        self._tls = tls
        self._log_file = log_file
        self._log_prompts = log_prompts
        self._start_timeout_s = start_timeout_s
        self._progress = progress
        self._scratch: Scratch | None = None
        self._process: Process | None = None
        self._gateway: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        started = time.monotonic()
        self._find_ports()  # before what takes seconds
        self._scratch = Scratch()
        from trtllm_build.bundle import Bundle  # when ports and TMPDIR are known to do

        try:
            self._progress(f"checking the engine bundle {self.bundle}")
            manifest = Bundle.open(self.bundle).manifest
            installation = Installation.find()
            self._progress(check_version(installation, self._host, allow_old=self._allow_old_triton))
            self._ports = self._find_ports()
            self._start(installation, self._scratch, manifest["gpu"], render(parameters=for_engine(manifest)))
            self._progress("loading the engine, and one generation")
            self._wait(started + self._start_timeout_s, self._serves, "tritonserver")
            self.probe()
            if "openai" in self._ports:
                self._progress("starting the OpenAI gateway")
                self.start_gateway()
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
        """Host and port of the gRPC endpoint, as :class:`~triton_repo.client.client.Client` takes it."""
        return at(self._reached("grpc"), self._ports["grpc"])

    @property
    def http_url(self) -> str:
        """Root of Triton's HTTP endpoint."""
        return f"http://{at(self._reached('http'), self._ports['http'])}"

    @property
    def metrics_url(self) -> str:
        """Address of the Prometheus metrics."""
        return f"http://{at(self._near, self._ports['metrics'])}/metrics"

    @property
    def openai_url(self) -> str:
        """Base URL of the OpenAI endpoint; only with ``openai_port``."""
        return f"{'http' if self._tls is None else 'https'}://{at(self._near, self._ports['openai'])}/v1"

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        assert self._process is not None, "the server runs only inside its context"
        return self._process.pid

    @property
    def gateway_pid(self) -> int | None:
        """Process id of the gateway; None without one."""
        return None if self._gateway is None else self._gateway.pid

    @property
    def log_path(self) -> Path | None:
        """File with the output; None for standard error."""
        assert self._scratch is not None, "the server runs only inside its context"
        if self._log_file == "-":
            return None
        return Path(self._log_file).resolve() if self._log_file else self._scratch.path / "tritonserver.log"

    def _find_ports(self) -> dict[str, int]:
        found = free_ports({f"--{name}-port": (self._hosts[name], port) for name, port in self._ports.items()})
        return dict(zip(self._ports, found.values(), strict=True))

    def _reached(self, name: str) -> str:
        """Where this machine reaches an endpoint of tritonserver's."""
        return self._near if self._hosts[name] == self._host else self._hosts[name]

    def probe(self, timeout_s: float = 30.0) -> None:
        """One token, generated: a server whose model process has died still calls itself ready.

        Raises:
            ServerFailed: when it does not come.
        """
        body = {"id": "probe", "input_ids": [[0]], "max_tokens": 1, "max_denoising_steps": 1, "priority": -(2**31)}
        url = f"{self.http_url}/v2/models/{MODEL}/generate"
        request = urllib.request.Request(url, json.dumps(body).encode())
        try:
            with DIRECT.open(request, timeout=timeout_s) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            raise ServerFailed(self._with_log(f"it does not generate: {error.read().decode()}")) from error
        except OSError as error:
            raise ServerFailed(self._with_log(f"it does not generate: {error}")) from error

    def check(self) -> None:
        """Raise :class:`ServerFailed` when tritonserver or a model's process has ended."""
        assert self._process is not None, "the server runs only inside its context"
        if (status := self._process.returncode()) is not None:
            raise ServerFailed(self._with_log(f"tritonserver ended with status {status}"))
        if self._process.stub_died():
            raise ServerFailed(self._with_log("the model's process died"))

    def gateway_died(self) -> bool:
        """Whether there should be a gateway and is none."""
        return self._gateway is not None and self._gateway.poll() is not None

    def gateway_answers(self) -> bool:
        """Whether the gateway takes a connection and answers, or there is none."""
        port = self._ports.get("openai")
        return port is None or answers(self._near, port, self._tls, _ANSWER_S)

    def end_gateway(self) -> None:
        """End a gateway that does not answer, at once; :meth:`gateway_died` is true then."""
        assert self._gateway is not None, "there is one"
        self._gateway.kill()
        self._gateway.wait()

    def start_gateway(self) -> None:
        """Start the gateway, or start it again, and wait until it answers.

        Raises:
            ServerFailed: when it does not.
        """
        command = [sys.executable, "-m", "triton_repo.gateway", f"--host={self._host}", f"--grpc-url={self.grpc_url}"]
        command += [f"--port={self._ports['openai']}", *self._openai_options]
        command += ["--insecure"] if self._insecure else []
        command += [] if self._api_key_file is None else [f"--api-key-file={self._api_key_file}"]
        if self._tls is not None:
            command += [f"--tls-cert={self._tls.cert}", f"--tls-key={self._tls.key}", f"--grpc-ca={self._tls.ca}"]
            command += [f"--grpc-name={self._tls.name(self._reached('grpc'), self._ports['grpc'])}"]
            if self._tls.client_ca is not None:
                command += [f"--tls-client-ca={self._tls.client_ca}"]
                command += [f"--grpc-cert={self._tls.cert}", f"--grpc-key={self._tls.key}"]
        log = self.log_path
        with open(2 if log is None else log, "ab", closefd=log is not None) as output:
            self._gateway = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(end_with_parent, signal.SIGKILL, os.getpid()),
                env={**os.environ, **unproxied(self._host)},
            )
        os.sched_setaffinity(self._gateway.pid, beside_the_engine())
        self._wait(time.monotonic() + 30, self._gateway_listens, "the gateway")

    def drain(self, budget_s: float) -> bool:
        """Take no more requests, and wait until those that run have ended.

        Returns:
            False when ``budget_s`` seconds were not enough.
        """
        assert self._scratch is not None, "the server runs only inside its context"
        (self._scratch.path / "drain").touch()
        end = time.monotonic() + budget_s
        idle = 0
        while idle < _IDLE_LOOKS:
            if time.monotonic() > end:
                return False
            time.sleep(_IDLE_LOOK_S)
            running = running_requests(self.metrics_url)
            if running is None and self._process is not None and self._process.returncode() is not None:
                return True
            # a server that is too busy to answer has not come to rest
            idle = idle + 1 if running == 0 else 0
        return True

    def close(self) -> None:
        """Stop the gateway and tritonserver, and remove what they left; does nothing the second time."""
        gateway, self._gateway = self._gateway, None
        process, self._process = self._process, None
        scratch, self._scratch = self._scratch, None
        if gateway is not None:
            _end(gateway)
        if process is not None:
            process.stop(_STOP_BUDGET_S)
        if scratch is not None:
            scratch.remove()

    def _start(self, installation: Installation, scratch: Scratch, gpu: str, config: str) -> None:
        directory = scratch.path
        models, caches = directory / "models", directory / "caches"
        try:
            # Private copies: a model's process writes bytecode beside model.py, and tritonserver changes its stub.
            shutil.copytree(REPOSITORY, models, ignore=shutil.ignore_patterns("__pycache__"))
            (models / MODEL / "configs" / f"{gpu}.pbtxt").write_text(config)
            caches.mkdir()
            backends = installation.backend_directory(directory / "backends")
            engine = self.bundle
            if not str(engine).isascii():
                # The stub's Python could not read such a path.
                engine = directory / "engine"
                engine.symlink_to(self.bundle)
        except OSError as error:
            allowed = f"a folder with room for 5 MB ({error})"
            raise FieldError(
                field="TMPDIR",
                value=str(directory.parent),
                allowed=allowed,
                fix="make room, or set it to another folder",
            ) from error
        admin = f"{_RESTRICTED}:admin={secrets.token_hex(16)}"
        options = [
            f"--model-repository={models}",
            f"--model-config-name={gpu}",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={scratch.shm_prefix}",
            f"--backend-config=python,thread-pool-size={BACKEND_THREADS}",
            f"--cache-directory={caches}",
            "--disable-auto-complete-config",
            "--allow-gpu-metrics=false",
            f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
            *_PINGS,
            f"--grpc-restricted-protocol={admin}",
            f"--http-restricted-api={admin}",
            *(f"--{name}-address={_written(name, self._hosts[name])}" for name in ("http", "grpc", "metrics")),
            *(f"--{name}-port={self._ports[name]}" for name in ("http", "grpc", "metrics")),
            *(self._tls.options() if self._tls else ()),
        ]
        # Engine threads that spin while they wait starve tritonserver's own, and each other where cores are shared.
        environment = {
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
            **unproxied(self._host),
            ENGINE_VARIABLE: str(engine),
            DRAIN_VARIABLE: str(directory / "drain"),
            ENGINE_CPUS_VARIABLE: ",".join(map(str, sorted(available_cpus()))),
            **({LOG_PROMPTS_VARIABLE: "1"} if self._log_prompts else {}),
        }
        listens = ", ".join(f"{name} {at(self._hosts[name], port)}" for name, port in self._ports.items())
        self._progress(f"starting tritonserver: {listens}")
        self._process = Process(installation, options, environment, directory, self.log_path)
        os.sched_setaffinity(self._process.pid, beside_the_engine())

    def _serves(self) -> bool:
        self.check()
        return _answers(f"{self.http_url}/v2/health/ready")

    def _gateway_listens(self) -> bool:
        if self.gateway_died():
            assert self._gateway is not None
            raise ServerFailed(self._with_log(f"the gateway ended with status {self._gateway.returncode}"))
        return self.gateway_answers()

    def _wait(self, deadline: float, good: Callable[[], bool], what: str) -> None:
        while not good():
            if time.monotonic() > deadline:
                raise ServerFailed(self._with_log(f"{what} was not ready in time"))
            time.sleep(0.1)

    def _with_log(self, message: str) -> str:
        if self._scratch is None:
            return f"{message}; it was closed meanwhile"
        path = self.log_path
        if path is None:
            return message
        text = path.read_text(errors="replace") if path.is_file() else ""
        # Its tables of options and models would fill the tail and say nothing.
        lines = [line for line in text.splitlines() if line and not line.startswith(("|", "+"))]
        return "\n".join([f"{message}; the end of its log:", *lines[-_TAIL_LINES:]])


def _written(name: str, address: str) -> str:
    """An address as tritonserver takes it: its gRPC and its HTTP write those of IPv6 each in their own way."""
    if not is_ipv6(address):
        return address
    return f"[{address}]" if name == "grpc" else f"ipv6:{address}"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_BUDGET_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with DIRECT.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
