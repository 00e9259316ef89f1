"""Bytes that no honest client sends, to the real gateway: each is refused or closed, others are answered as before."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving.gateway import Running, request, running

GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\ncontent-type: application/json\r\n"
OTHER = b"GET /secret HTTP/1.1\r\nHost: x\r\n\r\n"
EVIL = "evil\x1b[31m"

RAW: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9 + b"\r\n\r\n", (400,)),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 404, 405)),
    "NUL in a header": (GET + b"x-a: a\0b\r\n\r\n", (400,)),
    "NUL in the path": (b"GET /v1/\0models HTTP/1.1\r\nHost: x\r\n\r\n", (400,)),
    "a line in a header": (GET + b"x-request-id: a\rb\r\n\r\n", (400,)),
    "a header without a name": (GET + b": a\r\n\r\n", (400,)),
    "a header that goes on": (GET + b"x-a : a\r\n\r\n", (400,)),
    "ten thousand headers": (GET + b"x-a: a\r\n" * 10_000 + b"\r\n", (400, 431)),
    "a header of a megabyte": (GET + b"x-request-id: " + b"a" * 2**20 + b"\r\n\r\n", (400, 431)),
    "a traceparent of a megabyte": (GET + b"traceparent: " + b"a" * 2**20 + b"\r\n\r\n", (400, 431)),
    "a path of a megabyte": (b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nHost: x\r\n\r\n", (400, 431)),
    "both lengths": (POST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + OTHER, (400,)),
    "both lengths, the other way": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + OTHER, (400,)),
    "two lengths": (POST + b"content-length: 4\r\ncontent-length: 5\r\n\r\n{}   " + OTHER, (400,)),
    "a negative length": (POST + b"content-length: -1\r\n\r\n" + OTHER, (400,)),
    "a length beyond integers": (POST + b"content-length: " + b"9" * 40 + b"\r\n\r\n", (400, 413)),
    "another coding": (POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", (400, 501)),
    "a chunk of 2^64": (POST + b"transfer-encoding: chunked\r\n\r\nffffffffffffffff1\r\na", (400, 413)),
    "a chunk without a length": (POST + b"transfer-encoding: chunked\r\n\r\nzz\r\na", (400,)),
    "no host": (b"GET /v1/models HTTP/1.1\r\n\r\n", (400,)),
    "a websocket": (GET.replace(b"/v1", b"/v2") + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n", (404,)),
    "a method of its own": (b"E" * 30 + b" /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", (405,)),
}


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


def connected(gateway: Running) -> socket.socket:
    url = httpx.URL(gateway.url)
    return socket.create_connection((url.host, url.port), timeout=60)


def said(one: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    found = b""
    try:
        while part := one.recv(2**16):
            found += part
    except ConnectionResetError:
        pass
    return found


@pytest.mark.parametrize("name", RAW)
def test_raw(gateway: Running, name: str) -> None:
    content, statuses = RAW[name]
    with connected(gateway) as one:
        try:
            one.sendall(content)
            one.shutdown(socket.SHUT_WR)
        except OSError:
            return  # closed with the rest unread
        found = said(one)
    # nothing may come of what stands behind a message whose end is in doubt
    assert found.count(b"HTTP/1.1 ") <= 1 or name == "HTTP/2 preface"
    if found:
        assert int(found.split()[1]) in statuses, found[:300]


def test_many_requests_in_one_segment_are_answered_in_order(gateway: Running) -> None:
    asked = [GET + b"x-request-id: %d\r\n\r\n" % i for i in range(50)]
    with connected(gateway) as one:
        one.sendall(b"".join(asked)[:-2] + b"connection: close\r\n\r\n")
        found = said(one)
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


BODIES: dict[str, tuple[dict[str, str], bytes, int]] = {
    "a gzip bomb": ({"content-encoding": "gzip"}, gzip.compress(bytes(2**24)), 415),
    "another compression": ({"content-encoding": "br, gzip"}, b"{}", 415),
    "no compression": ({"content-encoding": "identity"}, b"{}", 400),
    "deep": ({}, b"[" * 10**5, 400),
    "deep metadata": ({}, b'{"model":"diffgemma","prompt":"a","metadata":' + b"[" * 10**5 + b"]" * 10**5 + b"}", 400),
    "a million digits": ({}, b'{"model":"diffgemma","prompt":"a","seed":' + b"1" * 10**6 + b"}", 400),
    "a million values": ({}, b'{"model":"diffgemma","prompt":[' + b"1," * 10**6 + b"1]}", 413),
    "a million prompts": ({}, b'{"model":"diffgemma","prompt":[' + b'"a",' * 10**6 + b'"a"]}', 413),
    "many prompts": ({}, b'{"model":"diffgemma","prompt":[' + b'"a",' * 10**5 + b'"a"]}', 400),
    "many wrong tokens": ({}, b'{"model":"diffgemma","prompt":[1,' + b'"a",' * 10**5 + b'"a"]}', 400),
    "many fields": (
        {},
        b'{"model":"diffgemma","prompt":"a"' + b"".join(b',"k%d":1' % i for i in range(9999)) + b"}",
        400,
    ),
    "many answers": ({}, b'{"model":"diffgemma","prompt":"a","n":1000000000}', 400),
    "a model of a megabyte": ({}, json.dumps({"model": EVIL * 10**5, "prompt": "a"}).encode(), 404),
    "a model with lines": ({}, json.dumps({"model": f"\r\n{EVIL}\u2028\x85", "prompt": "a"}).encode(), 404),
    "a template": ({}, b'{"model":"diffgemma","prompt":"a","chat_template":"{{ evil }}"}', 400),
    "a cycle": ({}, b'{"model":"diffgemma","prompt":"a","response_format":{"$ref":"#/response_format"}}', 400),
}


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
