"""What a cluster asks: is it alive, may it have requests. On a port of its own, answered by the supervisor."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


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
        host, port: where it listens.
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

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Root of its address."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
