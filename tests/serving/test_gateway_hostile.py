"""Bytes that no honest client sends, to the real gateway: each is refused or closed, others are answered as before."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cases.serving.hostile import BODIES, GET, POST, RAW, sent, until_closed
from tests.serving.gateway import Running, request, running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running("127.0.0.1:1", tmp_path_factory.mktemp("hostile") / "log") as found:
        yield found


@pytest.fixture(autouse=True)
def unharmed(gateway: Running) -> Iterator[None]:
    """The same answer as before, from the same process; a log that is whole and short."""
    before = gateway.log.stat().st_size
    answer = request(f"{gateway.url}/v1/models")[::2]
    yield
    assert request(f"{gateway.url}/v1/models")[::2] == answer
    assert gateway.process.poll() is None
    log = gateway.log.read_bytes()
    assert len(log) - before < 20_000
    assert not set(log) & (set(range(32)) - {10} | set(range(127, 256)))
    assert b"secret" not in log
    assert b"evil" not in log
    assert all(json.loads(line)["level"] in ("info", "warning") for line in log.splitlines())


def address(gateway: Running) -> tuple[str, int]:
    url = httpx.URL(gateway.url)
    assert url.port is not None
    return url.host, url.port


def connected(gateway: Running) -> socket.socket:
    return socket.create_connection(address(gateway), timeout=60)


@pytest.mark.parametrize("name", RAW)
def test_raw(gateway: Running, name: str) -> None:
    content, statuses = RAW[name]
    found = sent(address(gateway), content)
    # nothing may come of what stands behind a message whose end is in doubt
    assert found.count(b"HTTP/1.1 ") <= 1 or name == "HTTP/2 preface"
    if found:
        assert int(found.split()[1]) in statuses, found[:300]


def test_many_requests_in_one_segment_are_answered_in_order(gateway: Running) -> None:
    asked = [GET + b"x-request-id: %d\r\n\r\n" % i for i in range(50)]
    with connected(gateway) as one:
        one.sendall(b"".join(asked)[:-2] + b"connection: close\r\n\r\n")
        found = until_closed(one)
    ids = [line.split()[-1] for line in found.split(b"\r\n") if line.startswith(b"x-request-id")]
    assert ids == [b"%d" % i for i in range(50)]


def test_connections_that_are_reset_or_half_closed(gateway: Running) -> None:
    for content in (b"", GET, POST + b"content-length: 100\r\n\r\n{", GET + b"\r\n"):
        for reset in (True, False):
            with connected(gateway) as one:
                one.sendall(content)
                if reset:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    one.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("name", BODIES)
def test_bodies(gateway: Running, name: str) -> None:
    headers, body, status = BODIES[name]
    answer = httpx.post(
        f"{gateway.url}/v1/completions", content=body, headers={"content-type": "application/json", **headers}
    )
    assert answer.status_code == status, answer.text[:300]
    assert len(answer.text) < 2000
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_nothing_is_fetched(gateway: Running) -> None:
    """Addresses anywhere in a body: nobody connects to them."""
    with socket.create_server(("127.0.0.1", 0)) as watched:
        url = f"http://127.0.0.1:{watched.getsockname()[1]}/evil"
        for where in (url, "file:///etc/hostname", f"{url}.jinja"):
            for body in (
                {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": where}}]}]},
                {"messages": [{"role": "user", "content": where}], "chat_template": where},
                {"messages": [{"role": "user", "content": where}], "metadata": {"url": where}},
                {"messages": [{"role": "user", "content": where}], "response_format": {"$ref": where}},
            ):
                answer = httpx.post(f"{gateway.url}/v1/chat/completions", json={"model": "diffgemma", **body})
                assert answer.status_code in (400, 503)
        watched.setblocking(False)
        with pytest.raises(BlockingIOError):
            watched.accept()


@pytest.mark.parametrize("value", ["a\tb", "a" * 129, "\x7f", "%0d%0a", "evil;", "../evil"])
def test_ids_and_traces_that_are_none(gateway: Running, value: str) -> None:
    answer = httpx.get(f"{gateway.url}/v1/models", headers={"x-request-id": value, "traceparent": value})
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"\xff\xfe",
        b"a:b\n",
        b"a" * 2**20,
        b"\x1b[31mevil\n",
        b"ada:" + b"0" * 63 + b"\n",
        b"ada:evil:requests=1",
    ],
)
def test_a_key_file_of_odd_contents(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    command = [sys.executable, "-m", "triton_repo.gateway", "--port=0", f"--api-key-file={file}"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"evil" not in done.stderr
