"""HTTP on one connection: uvicorn's, with limits on how long a client may take and on what it may send."""

from __future__ import annotations

import json
import re
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from triton_repo.gateway.connections import BODY, CLOSES, HEADERS, READS, Connections, Phase
from triton_repo.gateway.errors import ApiError

# Of a request's headers, together.
MOST_HEADER_BYTES = 2**16
_MOST_HEADERS = 256
# Each chunk of a body takes as long as a kilobyte: so many are free, beyond them chunks have to be so large on average.
_FREE_CHUNKS, _LEAST_CHUNK_BYTES = 1024, 256
# Without a user, who means nothing here.
_ABSOLUTE = re.compile(rb"https?://[^/?#@]+(?=[/?]|$)", re.IGNORECASE)


class _Checked(h11.Connection):
    """What h11 accepts, and what is more than anybody needs, or means one thing to a proxy and another one here."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MOST_HEADER_BYTES)
        self._pieces = self._bytes = 0
        self.why = ApiError(400, "this is not HTTP/1.1", code="invalid_http")

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._bytes = 0
            self._check(event)
            event = _in_origin_form(event)
        elif isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > _FREE_CHUNKS + self._bytes / _LEAST_CHUNK_BYTES:
                raise self._wrong(413, "the body comes in too many small chunks", "request_too_large")
        return event

    def _check(self, request: h11.Request) -> None:
        names = [name for name, _ in request.headers]
        size = len(request.target) + sum(len(name) + len(value) for name, value in request.headers)
        if len(names) > _MOST_HEADERS or size > MOST_HEADER_BYTES:
            raise self._wrong(431, "the headers are too large", "request_too_large")
        # h11 reads such a body by its chunks; a proxy that goes by the length takes its rest for the next request.
        if b"content-length" in names and b"transfer-encoding" in names:
            raise self._wrong(400, "content-length beside transfer-encoding", "invalid_http")

    def _wrong(self, status: int, message: str, code: str) -> h11.RemoteProtocolError:
        self.why = ApiError(status, message, code=code)
        return h11.RemoteProtocolError(message)


def _in_origin_form(request: h11.Request) -> h11.Request:
    """The same request for a path: a target may be a whole URL (RFC 9112, 3.2.2), which uvicorn takes for one."""
    if (found := _ABSOLUTE.match(request.target)) is None:
        return request
    path = request.target[found.end() :]
    target = path if path.startswith(b"/") else b"/" + path
    headers, version = request.headers.raw_items(), request.http_version
    return h11.Request(method=request.method, headers=headers, target=target, http_version=version)


class Connection(H11Protocol):
    """One connection.

    Args:
        connections: of the process.
        given: uvicorn's.
    """

    def __init__(self, connections: Connections, **given: Any):
        super().__init__(**given)
        self.conn: _Checked = _Checked()
        self._connections = connections
        self._idle = Phase(float(self.config.timeout_keep_alive))
        self._writable = True

    def connection_made(self, transport: Any) -> None:
        """The client is to send its first request; with TLS it has been since the handshake."""
        super().connection_made(transport)
        self._turn = self._connections.of(transport)
        self._turn.late, self._turn.cut = self._late, transport.abort

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        self._turn.received += len(data)
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """An answer has been given."""
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        super().pause_writing()
        self._writable = False
        self._look()

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._writable = True
        self._look()

    def send_400_response(self, _msg: str) -> None:
        """What uvicorn does with what :class:`_Checked` refuses."""
        self._refuse(self.conn.why)

    def _look(self) -> None:
        """Whose turn is it now?"""
        if (phase := self._phase()) is not self._turn.phase:
            self._connections.wait(self._turn, phase)

    def _phase(self) -> Phase | None:
        if self.transport.is_closing():
            return CLOSES
        if not self._writable:
            return READS
        if self.conn.their_state is h11.SEND_BODY:
            return BODY
        if self.conn.their_state is not h11.IDLE:
            return None
        return HEADERS if self.cycle is None or self.conn.trailing_data[0] else self._idle

    def _late(self) -> None:
        begun = self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]
        if begun and self._writable:
            self._refuse(ApiError(408, "the request did not arrive in time", code="request_timeout"))
        else:
            self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Answer, unless an answer has begun, and close."""
        body = json.dumps(error.body()).encode()
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            reason = STATUS_PHRASES[error.status]
            answer = h11.Response(status_code=error.status, headers=[*head, (b"connection", b"close")], reason=reason)
            self.transport.write(self.conn.send(answer) or b"")
            self.transport.write(body)
        if self.cycle is not None:
            # Its handler, which may be waiting for the rest, is to say nothing more.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
