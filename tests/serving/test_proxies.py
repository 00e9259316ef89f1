"""A proxy in the environment is for other machines: what listens on this one is asked directly."""

from __future__ import annotations

import asyncio
import http.server
import threading

import pytest

from tests.serving.peer import Peer, serving
from triton_repo.client.client import Client
from triton_repo.launcher.scrape import denoising_steps

NAMES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY")


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("proxied")
def test_the_client_reaches_this_machine() -> None:
    async def run() -> str | None:
        async with serving(Peer()) as url, Client(url) as client:
            return [r async for r in client.generate("red", max_tokens=1)][-1].finish_reason

    assert asyncio.run(run()) is not None


@pytest.mark.usefixtures("proxied")
def test_the_launcher_reaches_its_server() -> None:
    class Metrics(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"diffgemma_denoising_steps_total 7\n")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert denoising_steps(f"http://127.0.0.1:{server.server_port}/metrics") == 7
        server.shutdown()
