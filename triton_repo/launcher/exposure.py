"""Which endpoint listens where, and what is refused beyond loopback."""

from __future__ import annotations

from collections.abc import Callable

from nemo_diffgemma.errors import FieldError, require
from triton_repo.launcher.bulletins import known, summary
from triton_repo.launcher.tritonserver import LOOPBACK, Installation
from triton_repo.loopback import is_loopback


def addresses(
    host: str, *, openai: bool, keys: bool, client_ca: bool, insecure: bool, say: Callable[[str], None]
) -> dict[str, str]:
    """Where each endpoint listens.

    Triton's HTTP stays on loopback: it speaks no TLS and asks nobody who he is. Its gRPC can ask for certificates, and
    knows no keys, so with keys alone it stays there too. Metrics and health listen on ``host``.

    Args:
        host: the address that was asked for.
        openai: whether OpenAI's API is served.
        keys: it asks for API keys.
        client_ca: clients must show a certificate.
        insecure: listen beyond loopback although nobody has to show anything.
        say: called with a line for what stays on loopback.

    Raises:
        FieldError: beyond loopback, when anybody could generate there.
    """
    near = is_loopback(host)
    if not near:
        allowed = "beyond loopback with --tls-client-ca, or with --openai-port and --api-key-file: else anybody may ask"
        fix = "pass --api-key-file FILE (a line of it: diffgemma-serve --new-key NAME), or --insecure"
        closed = client_ca or (keys and openai)
        require(closed or insecure, field="--host", value=host, allowed=allowed, fix=fix)
    known_to_all = near or client_ca or insecure
    found = {"http": host if near else LOOPBACK, "grpc": host if known_to_all else LOOPBACK, "metrics": host}
    if openai:
        found["openai"] = host
    if not near:
        say(f"Triton's HTTP stays on {LOOPBACK}: it knows neither TLS nor keys")
    if not known_to_all:
        say(f"gRPC stays on {LOOPBACK}: it knows no keys; --tls-client-ca, or --insecure, opens it")
    return found


def check_version(installation: Installation, host: str, *, allow_old: bool) -> str:
    """A line about the tritonserver that was found.

    Raises:
        FieldError: for one with known vulnerabilities, or of unknown version, that listens beyond loopback.
    """
    version = installation.version
    about = "its version is not known: no TRITON_VERSION beside it" if version is None else summary(version)
    line = f"tritonserver {version or ''} {installation.binary}: {about}".replace("  ", " ")
    if is_loopback(host) or allow_old or (version is not None and not known(version)):
        return line
    raise FieldError(
        field="tritonserver",
        value=f"{installation.binary}, version {version or 'unknown'}",
        allowed=f"one without known vulnerabilities beyond loopback; this has {about}",
        fix="use NVIDIA's container 26.09 or newer, or pass --allow-old-triton",
    )
