"""The command line of ``python -m triton_repo.gateway``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nemo_diffgemma.errors import require
from triton_repo import web
from triton_repo.addresses import resolved
from triton_repo.client.settings import DEFAULT_URL
from triton_repo.loopback import is_loopback
from triton_repo.tensors import MODEL


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the command line; exits with status 2 and the usage on a mistake in its form.

    Raises:
        FieldError: for files that do not go together, or are not there, and for what would be open to anybody.
    """
    about = "The OpenAI-compatible endpoint of a running diffgemma server."
    parser = argparse.ArgumentParser(prog="python -m triton_repo.gateway", description=about)
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="(default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="0 for any free one (default: %(default)s)")
    parser.add_argument("--model-name", default=MODEL, metavar="NAME", help="in requests (default: %(default)s)")
    about = "after SIGTERM, for what runs to finish (default: %(default)s)"
    parser.add_argument("--drain-timeout", type=float, default=30.0, metavar="SECONDS", help=about)
    parser.add_argument("--tls-cert", metavar="FILE", help="speak HTTPS with this certificate, in PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="its key")
    parser.add_argument("--tls-client-ca", metavar="FILE", help="ask clients for a certificate that these have signed")
    web.add(parser)
    about = "ask every client for one of these keys (lines of diffgemma-serve --new-key); read again when it changes"
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help=about)
    about = "listen beyond loopback although anybody who reaches it may ask"
    parser.add_argument("--insecure", action="store_true", help=about)
    about = "the model server's gRPC endpoint (default: %(default)s)"
    parser.add_argument("--grpc-url", default=DEFAULT_URL, metavar="HOST:PORT", help=about)
    parser.add_argument("--grpc-ca", metavar="FILE", help="speak TLS to it; these have signed its certificate")
    parser.add_argument("--grpc-cert", metavar="FILE", help="certificate of the gateway, where it asks for one")
    parser.add_argument("--grpc-key", metavar="FILE", help="its key")
    parser.add_argument("--grpc-name", metavar="NAME", help="what its certificate is for (default: the host)")
    given = parser.parse_args(arguments)
    given.host = resolved("--host", given.host)
    require(
        is_loopback(given.host) or given.insecure or bool(given.api_key_file or given.tls_client_ca),
        field="--host",
        value=given.host,
        allowed="beyond loopback with --api-key-file or --tls-client-ca: else anybody may ask",
        fix="pass --api-key-file FILE (a line of it: diffgemma-serve --new-key NAME), or --insecure",
    )
    _together(given, "tls_key", "tls_cert")
    _together(given, "tls_cert", "tls_key")
    _together(given, "tls_client_ca", "tls_cert")
    _together(given, "grpc_cert", "grpc_ca")
    _together(given, "grpc_key", "grpc_cert")
    _together(given, "grpc_name", "grpc_ca")
    _together(given, "grpc_cert", "grpc_key")
    for name in ("tls_cert", "tls_key", "tls_client_ca", "grpc_ca", "grpc_cert", "grpc_key"):
        path = getattr(given, name)
        require(
            path is None or Path(path).is_file(),
            field=_option(name),
            value=path,
            allowed="a file in PEM",
            fix="correct the path",
        )
    web.check(given)
    return given


def _together(given: argparse.Namespace, name: str, needed: str) -> None:
    path = getattr(given, name)
    whole = path is None or getattr(given, needed) is not None
    require(
        whole,
        field=_option(name),
        value=path,
        allowed=f"only with {_option(needed)}",
        fix=f"pass {_option(needed)} FILE",
    )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
