"""``diffgemma-serve``: the service as one process that a terminal or a cluster runs."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.processes import raise_open_files
from triton_repo import web
from triton_repo.addresses import check_different, resolved
from triton_repo.keys import new as new_key
from triton_repo.launcher.health import Health
from triton_repo.launcher.server import Server, ServerFailed
from triton_repo.launcher.supervisor import Patience, Supervisor
from triton_repo.launcher.tls import ServerTls
from triton_repo.launcher.tritonserver import LOOPBACK

_ABOUT = """\
Serve an engine bundle with tritonserver: gRPC and HTTP under the model names diffgemma (streams), diffgemma_unary
(one response, plain ModelInfer) and tensorrt_llm (token ids); with --openai-port also as OpenAI's API.

Ready (GET /v2/health/ready on --health-port) means that a generation has succeeded and nothing has gone wrong since.
A model process that dies or stands still is started again; after three times in ten minutes the command ends with
status 1. SIGTERM and Ctrl-C: what comes is refused, what runs finishes within --drain-timeout, then all ends."""

_LEAST_STALL_S = 3


class _NewKey(argparse.Action):
    """Ends the command as ``--help`` does."""

    def __call__(
        self, parser: argparse.ArgumentParser, _namespace: object, values: object, _option: str | None = None
    ) -> None:
        try:
            key, line = new_key(str(values))
        except FieldError as error:
            print(f"error: {error}", file=sys.stderr)
            parser.exit(2)
        print(f"the key, which is shown this once: {key}", file=sys.stderr)
        print(line)
        parser.exit()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="diffgemma-serve", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", required=True, metavar="DIR", help="engine bundle, as diffgemma-engine wrote it")
    parser.add_argument("--host", default=LOOPBACK, metavar="ADDRESS", help="listen there (default: %(default)s)")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002), ("health", 8003)):
        about = f"{name} port, 0 for any free one (default: %(default)s)"
        parser.add_argument(f"--{name}-port", type=int, default=port, metavar="PORT", help=about)
    parser.add_argument("--openai-port", type=int, metavar="PORT", help="also serve OpenAI's API there")
    web.add(parser)
    about = "ask OpenAI's clients for one of its keys; read again when it changes"
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help=about)
    about = "make an API key: shows it once, on standard error, and prints its line for the file; then ends"
    parser.add_argument("--new-key", action=_NewKey, metavar="NAME", help=about)
    about = "listen beyond loopback although anybody who reaches it may ask"
    parser.add_argument("--insecure", action="store_true", help=about)
    about = "listen beyond loopback with a tritonserver that has known vulnerabilities"
    parser.add_argument("--allow-old-triton", action="store_true", help=about)
    tls = parser.add_argument_group("TLS for gRPC and OpenAI (PEM files); Triton's HTTP then stays on loopback")
    tls.add_argument("--tls-cert", type=Path, metavar="FILE", help="the server's certificate, with its chain")
    tls.add_argument("--tls-key", type=Path, metavar="FILE", help="its key")
    tls.add_argument("--tls-client-ca", type=Path, metavar="FILE", help="clients must show a certificate signed by it")
    tls.add_argument("--tls-ca", type=Path, metavar="FILE", help="what signed --tls-cert; with --openai-port")
    parser.add_argument("--log-file", metavar="FILE", help="append the log to it (default: standard error)")
    parser.add_argument("--log-prompts", action="store_true", help="write prompts to the log")
    for name, seconds, about in (
        ("start", 600.0, "loading and warm-up may take"),
        ("drain", 30.0, "what runs gets to finish"),
        ("stall", 60.0, "without a sign of life, after which the engine is started again"),
    ):
        text = f"seconds {about} (default: %(default)s)"
        parser.add_argument(f"--{name}-timeout", type=float, default=seconds, metavar="SECONDS", help=text)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0 after Ctrl-C or SIGTERM, 1 when the server fails, 2 for a mistake."""
    given = _parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's
            signal.signal(number, _interrupt)
    raise_open_files()
    try:
        _check_ports(given)
        server = _server(given)
        health = Health(resolved("--host", given.host), given.health_port)
        patience = Patience(doubt_s=given.stall_timeout / 3, stall_s=given.stall_timeout, drain_s=given.drain_timeout)
        try:
            Supervisor(server, health, patience, _say).run(lambda: _announce(server, health))
        finally:
            health.close()
    except KeyboardInterrupt:
        _say("stopped")
    except (FieldError, ServerFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, FieldError) else 1
    return 0


def _check_ports(given: argparse.Namespace) -> None:
    names = ("http", "grpc", "metrics", "health", "openai")
    ports = {f"--{name}-port": getattr(given, f"{name}_port") for name in names}
    check_different({option: port for option, port in ports.items() if port is not None})


def _server(given: argparse.Namespace) -> Server:
    web.check(given)
    for option in ("start", "drain", "stall"):
        value = getattr(given, f"{option}_timeout")
        require(
            0 < value < 86400,
            field=f"--{option}-timeout",
            value=value,
            allowed="seconds > 0, less than a day",
            fix="leave it out",
        )
    require(
        given.stall_timeout >= _LEAST_STALL_S,
        field="--stall-timeout",
        value=given.stall_timeout,
        allowed=f"at least {_LEAST_STALL_S} s: an engine that is well is silent for as long as a denoising step takes",
        fix="leave it out",
    )
    tls = None
    if given.tls_cert or given.tls_key:
        for option in ("cert", "key"):
            path = getattr(given, f"tls_{option}")
            allowed = "a file: --tls-cert and --tls-key go together"
            require(
                path is not None, field=f"--tls-{option}", value=None, allowed=allowed, fix=f"pass --tls-{option} FILE"
            )
        tls = ServerTls(given.tls_cert, given.tls_key, given.tls_client_ca, given.tls_ca)
    for option in ("client_ca", "ca"):
        path = getattr(given, f"tls_{option}")
        name = f"--tls-{option.replace('_', '-')}"
        require(
            tls is not None or path is None,
            field=name,
            value=str(path),
            allowed="used with --tls-cert",
            fix="pass --tls-cert, --tls-key",
        )
    return Server(
        given.engine,
        host=given.host,
        http_port=given.http_port,
        grpc_port=given.grpc_port,
        metrics_port=given.metrics_port,
        openai_port=given.openai_port,
        openai_options=web.passed_on(given),
        tls=tls,
        api_key_file=given.api_key_file,
        insecure=given.insecure,
        allow_old_triton=given.allow_old_triton,
        log_file=given.log_file or "-",
        log_prompts=given.log_prompts,
        start_timeout_s=given.start_timeout,
        progress=_say,
    )


def _announce(server: Server, health: Health) -> None:
    _say(f"serving on gRPC {server.grpc_url}, {server.http_url} and {server.metrics_url}")
    if server.gateway_pid is not None:
        _say(f"OpenAI's API: {server.openai_url}")
    _say(f"health: {health.url}/v2/health/ready; Ctrl-C stops it")
    _say(f'try: diffgemma --url {server.grpc_url} "PROMPT"')


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
