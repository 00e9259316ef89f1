"""Counts out of the server's metrics: a server that gives none is not a server at rest."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from triton_repo.launcher.scrape import denoising_steps, running_requests

TEXT = """\
nv_trt_llm_request_metrics{model="diffgemma",request_type="waiting",version="1"} 2.000000
nv_trt_llm_request_metrics{model="diffgemma",request_type="active",version="1"} 1.000000
nv_trt_llm_request_metrics{model="diffgemma",request_type="max",version="1"} 8.000000
diffgemma_denoising_steps_total{model="diffgemma",version="1"} 41.000000
"""


class Metrics(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(TEXT.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metrics() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join()


def test_counts(metrics: str) -> None:
    assert (running_requests(metrics), denoising_steps(metrics)) == (3, 41)


@pytest.mark.parametrize("listening", [True, False], ids=["too busy", "gone"])
def test_no_answer(listening: bool) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listening:
            silent.listen()
        assert running_requests(f"http://127.0.0.1:{silent.getsockname()[1]}/metrics") is None
