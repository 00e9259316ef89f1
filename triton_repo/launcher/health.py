"""What a cluster asks: is it alive, may it have requests. On a port of its own, answered by the supervisor."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from triton_repo.addresses import at, bound

_MOST_CONNECTIONS = 64


@dataclass(frozen=True)
class State:
    """What the service can do at the moment.

    Args:
        live: it serves, or is on the way to it; else only a new process can help.
        ready: a generation has succeeded, and nothing has been wrong since.
        reason: in words.
    """

    live: bool
    ready: bool
    reason: str


class Health:
    """``GET /v2/health/{live,ready}``: 200 or 503, with the reason as JSON. Triton's paths: probes change the port.

    Args:
        host, port: where it listens; an address in numbers, and 0 for any free port.

    Raises:
        FieldError: for a port that cannot be had.
    """

    def __init__(self, host: str, port: int):
        self.state = State(live=True, ready=False, reason="starting")
        health = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # a connection that says nothing does not keep its thread

            def do_GET(self) -> None:
                state = health.state
                good = {"/v2/health/live": state.live, "/v2/health/ready": state.ready}.get(self.path)
                self.send_response(404 if good is None else 200 if good else 503)
                body = json.dumps({"live": state.live, "ready": state.ready, "reason": state.reason}).encode()
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_args: object) -> None:
                """A line every few seconds would say nothing."""

        self._server = _Listening(bound("--health-port", host, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Root of its address."""
        return f"http://{at(*self._server.socket.getsockname()[:2])}"

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Listening(ThreadingHTTPServer):
    """Takes so many connections at once; the oldest gives way, whose client has had the time to ask."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, handler: type[BaseHTTPRequestHandler]):
        super().__init__(listening.getsockname()[:2], handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_activate()
        self._open: deque[socket.socket] = deque()

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own."""
        self._open.append(request)
        if len(self._open) > _MOST_CONNECTIONS:
            oldest = self._open.popleft()
            with contextlib.suppress(OSError):  # it has ended by itself
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def handle_error(self, _request: Any, _client_address: Any) -> None:
        """A client that goes away in the middle is nothing to report."""
