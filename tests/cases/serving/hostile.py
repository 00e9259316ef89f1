"""Bytes that no honest client sends to the gateway: what each is answered with."""

from __future__ import annotations

import gzip
import json
import socket

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
"""What is sent on a connection, and with which statuses it may be refused."""

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
"""Headers and body of a completion, and the status."""


def sent(address: tuple[str, int], content: bytes) -> bytes:
    """Send ``content`` and nothing more; returns what comes until the other end closes, which may be nothing."""
    with socket.create_connection(address, timeout=60) as one:
        try:
            one.sendall(content)
            one.shutdown(socket.SHUT_WR)
        except OSError:
            return b""  # closed with the rest unread
        return until_closed(one)


def until_closed(one: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    found = b""
    try:
        while part := one.recv(2**16):
            found += part
    except ConnectionResetError:
        pass
    return found
