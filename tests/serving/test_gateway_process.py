"""The gateway as a process: health, ids, logs, load, the model server going away, its own end, TLS."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
import trustme

from tests.serving.gateway import Running, request, running
from tests.serving.peer import Peer, serving
from triton_repo.client.blocking import BlockingClient
from triton_repo.launcher.scrape import running_requests
from triton_repo.launcher.server import Server

TEXT: dict[str, Any] = {"model": "diffgemma", "prompt": "red", "max_tokens": 1}
ENDLESS: dict[str, Any] = {
    **TEXT,
    "max_tokens": 200,
    "ignore_eos": True,
    "max_denoising_steps": 1024,
    "draft_every": 1,
    "stream": True,
}


def post(gateway: Running, body: Any, **headers: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return request(f"{gateway.url}/v1/completions", json.dumps(body).encode(), named)


def opened(gateway: Running, body: dict[str, Any]) -> http.client.HTTPResponse:
    """A stream after its first line."""
    sent = urllib.request.Request(
        f"{gateway.url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    answer: http.client.HTTPResponse = urllib.request.urlopen(sent, timeout=60)
    assert answer.readline().startswith(b"data: ")
    return answer


def test_it_needs_neither_torch_nor_an_engine() -> None:
    code = "import sys, triton_repo.gateway.__main__; print([m for m in ('torch', 'trtllm_build') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


def test_files_and_options_that_cannot_be_used(tmp_path: Path) -> None:
    for options, text in (
        (["--tls-key=key.pem"], "--tls-key: 'key.pem' cannot be used; allowed: only with --tls-cert; fix: pass"),
        (["--tls-client-ca=ca.pem"], "--tls-client-ca: 'ca.pem' cannot be used; allowed: only with --tls-cert"),
        (["--cors-origin=chat.example"], "--cors-origin: 'chat.example' cannot be used; allowed: scheme://host or"),
        (["--cors-origin=https://chat.example/"], "--cors-origin: 'https://chat.example/' cannot be used"),
        (["--keep-alive=0"], "--keep-alive: 0 cannot be used; allowed: seconds from 1 to a day; fix: leave it out"),
        (["--host=0.0.0.0"], "--host: '0.0.0.0' cannot be used; allowed: beyond loopback with --api-key-file or"),
        (
            ["--api-key-file=/nowhere"],
            "--api-key-file: '/nowhere' cannot be used; allowed: a file of lines NAME:SHA256",
        ),
        (["--grpc-ca=/nowhere"], "--grpc-ca: '/nowhere' cannot be used; allowed: a file in PEM; fix: correct"),
    ):
        command = [sys.executable, "-m", "triton_repo.gateway", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"error: {text}")


@pytest.mark.server
def test_health_ids_and_logs(gateway: Running) -> None:
    assert request(f"{gateway.url}/health")[::2] == (200, {"status": "ready"})
    head = httpx.head(f"{gateway.url}/health")
    assert (head.status_code, head.content) == (200, b"")
    secret = "größe naïve secret"
    status, headers, answer = post(gateway, {**TEXT, "prompt": secret, "user": "lovelace"}, x_request_id="mine-1")
    assert (status, headers["x-request-id"], answer["id"]) == (200, "mine-1", "cmpl-mine-1")
    record = gateway.record("mine-1")
    assert (record["status"], record["route"], record["stream"], record["choices"]) == (
        200,
        "/v1/completions",
        False,
        1,
    )
    assert record["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert record["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert 0 < record["first_response_seconds"] <= record["seconds"]
    for bad in ("with space", "x" * 129):
        _, headers, _ = post(gateway, TEXT, x_request_id=bad)
        assert headers["x-request-id"] != bad
    assert post(gateway, {**TEXT, "prompt": secret, "max_tokens": 0})[0] == 400
    log = gateway.log.read_text()
    assert all(word not in log for word in ("secret", "größe", "lovelace"))


@pytest.mark.server
@pytest.mark.slow
def test_a_full_queue_is_a_503(narrow_server: Server, tmp_path: Path) -> None:
    with running(narrow_server.grpc_url, tmp_path / "log") as gateway:
        stream = opened(gateway, ENDLESS)
        waiting = threading.Thread(target=lambda: post(gateway, TEXT))
        waiting.start()
        while (running_requests(narrow_server.metrics_url) or 0) < 2:
            time.sleep(0.05)
        status, headers, answer = post(gateway, TEXT)
        assert (status, headers["retry-after"]) == (503, "1")
        assert answer["error"]["message"].endswith("1 requests wait already; the limit is 1")
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as api:
            with pytest.raises(openai.InternalServerError) as error:
                api.completions.create(**TEXT)
            assert (error.value.status_code, error.value.code) == (503, "unavailable")
        stream.close()
        waiting.join(timeout=60)
        assert not waiting.is_alive()


def test_a_model_server_that_is_not_there_or_fails(tmp_path: Path) -> None:
    with running("127.0.0.1:1", tmp_path / "nobody") as gateway:
        status, headers, answer = post(gateway, TEXT)
        assert (status, headers["retry-after"]) == (503, "5")
        assert answer["error"]["message"] == "the model server does not answer"
        assert request(f"{gateway.url}/health")[0] == 503
        assert request(f"{gateway.url}/v1/models")[0] == 200

    async def run(code: grpc.StatusCode, responses: int) -> tuple[Any, list[Any]]:
        peer = Peer(code, failures=1, responses=responses)
        async with serving(peer) as url:
            with running(url, tmp_path / f"{code.name}{responses}") as gateway:
                body = json.dumps({**TEXT, "stream": responses > 0}).encode()
                headers = {"content-type": "application/json", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
                async with httpx.AsyncClient(timeout=60) as api:
                    found = await api.post(f"{gateway.url}/v1/completions", content=body, headers=headers)
        return found, peer.requests

    found, requests = asyncio.run(run(grpc.StatusCode.INTERNAL, 0))
    assert (found.status_code, found.json()["error"]["code"]) == (500, "internal_error")
    assert "on purpose" not in found.text
    sent = {t.name: c for t, c in zip(requests[0].inputs, requests[0].raw_input_contents, strict=True)}
    assert sent["traceparent"].endswith(f"00-{'a' * 32}-{'b' * 16}-01".encode())
    found, _ = asyncio.run(run(grpc.StatusCode.UNAVAILABLE, 2))
    events = [json.loads(line.removeprefix("data: ")) for line in found.text.splitlines() if line]
    assert found.status_code == 200
    assert events[-1]["error"]["message"] == "the model server went away"
    assert (events[-1]["error"]["code"], "[DONE]" in found.text) == ("unavailable", False)


def test_pages_of_the_origins_that_are_named_may_ask(tmp_path: Path) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    with running("127.0.0.1:1", tmp_path / "none") as gateway:
        models = httpx.get(f"{gateway.url}/v1/models", headers={"origin": "https://chat.example"})
        assert (models.status_code, "access-control-allow-origin" in models.headers) == (200, False)
    options = ["--cors-origin=https://chat.example", "--cors-origin=http://localhost:3000"]
    with running("127.0.0.1:1", tmp_path / "two", *options) as gateway:
        for origin, status in (("https://chat.example", 200), ("http://localhost:3000", 200), ("https://evil", 400)):
            sent = httpx.options(f"{gateway.url}/v1/chat/completions", headers={"origin": origin, **asked})
            assert sent.status_code == status
            assert sent.headers.get("access-control-allow-origin") == (origin if status == 200 else None)
        # A page has to be able to read refusals, too, and what an answer says in headers.
        refused = httpx.post(
            f"{gateway.url}/v1/chat/completions", content=b"{", headers={"origin": "https://chat.example"}
        )
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (400, "https://chat.example")
        assert "x-diffgemma-ignored" in refused.headers["access-control-expose-headers"]


def test_an_idle_connection_is_closed_after_the_time_that_is_said(tmp_path: Path) -> None:
    with running("127.0.0.1:1", tmp_path / "log", "--keep-alive=1") as gateway:
        host = httpx.URL(gateway.url)
        connection = http.client.HTTPConnection(host.host, host.port, timeout=60)
        connection.request("GET", "/v1/models")
        assert connection.getresponse().read()
        assert connection.sock.recv(1) == b""  # the other end has closed it; otherwise this times out
        connection.close()


@pytest.mark.server
def test_told_to_end_it_finishes_what_runs_and_refuses_what_comes(server: Server, tmp_path: Path) -> None:
    with running(server.grpc_url, tmp_path / "log", "--drain-timeout=60") as gateway:
        stream = opened(gateway, {**ENDLESS, "deadline": 6.0})
        gateway.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        status, headers, answer = post(gateway, TEXT)
        assert (status, headers["retry-after"]) == (503, "5")
        assert answer["error"]["message"] == "the server is shutting down"
        assert b"deadline_exceeded" in stream.read()
        assert gateway.process.wait(timeout=30) == 0


@pytest.mark.server
def test_what_outlives_the_budget_is_ended_with_an_error(server: Server, tmp_path: Path) -> None:
    with running(server.grpc_url, tmp_path / "log", "--drain-timeout=0.5") as gateway:
        stream = opened(gateway, ENDLESS)
        gateway.process.send_signal(signal.SIGTERM)
        assert b"the generation was ended: the server is shutting down" in stream.read()
        assert gateway.process.wait(timeout=30) == 0
    with BlockingClient(server.grpc_url) as client:
        assert list(client.generate("red", max_tokens=1, ignore_eos=True))[-1].finish_reason == "length"


def test_mutual_tls(certificates: tuple[trustme.CA, Path], tmp_path: Path) -> None:
    authority, folder = certificates
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    pair = (issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())
    creds = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), True)
    options = [f"--tls-cert={tmp_path / 'cert.pem'}", f"--tls-key={tmp_path / 'key.pem'}"]
    options += [f"--tls-client-ca={folder / 'ca.pem'}", f"--grpc-ca={folder / 'ca.pem'}"]
    options += [f"--grpc-cert={folder / 'cert.pem'}", f"--grpc-key={folder / 'key.pem'}"]
    trusting = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    known = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    known.load_cert_chain(folder / "cert.pem", folder / "key.pem")

    async def run() -> None:
        async with serving(Peer(), creds) as url:
            with running(url, tmp_path / "log", *options) as gateway:
                async with httpx.AsyncClient(verify=known) as api:
                    found = await api.post(f"{gateway.url}/v1/completions", json=TEXT)
                    assert (found.status_code, found.json()["choices"][0]["finish_reason"]) == (200, "length")
                async with httpx.AsyncClient(verify=trusting) as stranger:
                    with pytest.raises(httpx.TransportError):
                        await stranger.post(f"{gateway.url}/v1/completions", json=TEXT)

    asyncio.run(run())
