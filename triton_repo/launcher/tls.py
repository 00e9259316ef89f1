"""TLS of the service's endpoints: the files, and the service as its own client."""

from __future__ import annotations

import http.client
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from nemo_diffgemma.errors import require


@dataclass(frozen=True)
class ServerTls:
    """Files in PEM for the gRPC and OpenAI endpoints.

    Args:
        cert, key: the server's.
        client_ca: certificates that a client's must be signed by; None: clients need none.
        ca: certificates that ``cert`` is signed by: the gateway checks the gRPC endpoint by it, and shows ``cert``
            where clients need one.

    Raises:
        FieldError: for a file that is not there.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None
    ca: Path | None = None

    def __post_init__(self) -> None:
        for option, path in (("cert", self.cert), ("key", self.key), ("client-ca", self.client_ca), ("ca", self.ca)):
            good = path is None or path.is_file()
            require(good, field=f"--tls-{option}", value=str(path), allowed="a file in PEM", fix="correct the path")

    def options(self) -> list[str]:
        """tritonserver's."""
        mode = "--grpc-use-ssl=true" if self.client_ca is None else "--grpc-use-ssl-mutual=true"
        files = [mode, f"--grpc-server-cert={self.cert}", f"--grpc-server-key={self.key}"]
        return files if self.client_ca is None else [*files, f"--grpc-root-cert={self.client_ca}"]

    def context(self, protocol: str) -> ssl.SSLContext:
        """Of a client on this machine, which speaks ``protocol`` and asks for no name."""
        context = ssl.create_default_context(cafile=self.ca)
        context.check_hostname = False
        context.set_alpn_protocols([protocol])
        if self.client_ca is not None:
            context.load_cert_chain(self.cert, self.key)
        return context

    def name(self, host: str, port: int) -> str:
        """A name that the certificate of the server at ``port`` is for; it need not be ``host``."""
        context = self.context("h2")
        with socket.create_connection((host, port), timeout=10) as raw, context.wrap_socket(raw) as connection:
            found = connection.getpeercert() or {}
        names = [str(entry[1]) for entry in found.get("subjectAltName", ())]
        require(
            bool(names),
            field="--tls-cert",
            value=str(self.cert),
            allowed="a certificate with a subjectAltName",
            fix="issue one with it",
        )
        return names[0]


def answers(host: str, port: int, tls: ServerTls | None, timeout_s: float) -> bool:
    """Whether the gateway there takes a connection and answers a request, whatever it says."""
    try:
        if tls is None:
            connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
        else:
            connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=tls.context("http/1.1"))
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
        finally:
            connection.close()
    except (OSError, http.client.HTTPException):
        return False
    return True
