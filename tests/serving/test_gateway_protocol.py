"""What is read of a request's first line, without a server."""

from __future__ import annotations

import h11
import pytest

from triton_repo.gateway.protocol import _Checked


def target(said: bytes) -> bytes:
    connection = _Checked()
    connection.receive_data(b"GET " + said + b" HTTP/1.1\r\nHost: x\r\nX-A: b\r\n\r\n")
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    assert (request.method, list(request.headers)) == (b"GET", [(b"host", b"x"), (b"x-a", b"b")])
    assert isinstance(connection.next_event(), h11.EndOfMessage)
    return request.target


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"http://host/v1/models", b"/v1/models"),
        (b"HTTPS://[::1]:8080/v1/models?a=http://b/c", b"/v1/models?a=http://b/c"),
        (b"http://host", b"/"),
        (b"http://host?a=b", b"/?a=b"),
        (b"http://host//v1", b"//v1"),
        (b"http://host/v1/models@x", b"/v1/models@x"),
    ],
)
def test_a_whole_url_is_its_path(said: bytes, expected: bytes) -> None:
    assert target(said) == expected


@pytest.mark.parametrize(
    "said",
    [
        b"/v1/models",
        b"/http://host/v1",
        b"//host/v1",
        b"http:///v1/models",
        b"http://me@host/v1",
        b"ftp://host/v1",
        b"*",
    ],
)
def test_anything_else_stays_as_it_is(said: bytes) -> None:
    assert target(said) == said
