"""Around every request: its id, key and line in the log, the size of its body, the refusal while the process ends."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triton_repo.gateway.access import Access
from triton_repo.gateway.errors import ApiError, internal, unavailable
from triton_repo.gateway.headers import IGNORED, MAX_TOKENS, REQUEST_ID, SEED

# Twice the longest text that the served model takes: JSON escapes.
MOST_BODY_BYTES = 32 * 2**20
# So much of a body that is too large is read on, so that a client that writes before it reads gets its answer.
_MOST_READ_BYTES = 4 * MOST_BODY_BYTES
# Of a body, counted before it is parsed, also where they are part of a text: parsing holds up all other requests.
_MOST_VALUES, _MOST_OBJECTS = 2**19, 2**16
# Bodies of more than the first, which most have, together never take more than the second.
_SMALL_BYTES, _MOST_HELD_BYTES = 2**16, 16 * MOST_BODY_BYTES
_METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE")
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LOG = logging.getLogger(__name__)


class Traffic:
    """Requests under way, bytes of their bodies, and whether more may come."""

    def __init__(self) -> None:
        self.active = 0
        self.draining = False
        self._held = 0

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """While a request runs: what is called with so many more bytes of its body.

        Raises:
            ApiError: 503, when large bodies take as much as they may.
        """
        mine = 0

        def hold(more: int) -> None:
            nonlocal mine
            mine += more
            self._held += more
            if mine > _SMALL_BYTES and self._held > _MOST_HELD_BYTES:
                raise unavailable("too many large requests are under way")

        try:
            yield hold
        finally:
            self._held -= mine


class Observe:
    """The outermost layer.

    A handler finds the request's id in ``scope["state"]["request_id"]`` and adds to its line in the log through
    ``scope["state"]["record"]``; ``scope["state"]["key"]`` is the name of its API key, ``"share"`` what it has
    of that key's limits; both are None where no key is asked for.
    """

    def __init__(self, app: ASGIApp, traffic: Traffic, access: Access):
        self._app = app
        self._traffic = traffic
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        record: dict[str, Any] = {}
        # A copy: the server's own state is one for all requests.
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "record": record}
        scope["state"] |= {"key": None, "share": None}
        status = 499

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        self._traffic.active += 1
        try:
            await self._answer(scope, receive, marked)
        except ClientDisconnect:
            # Starlette has answered with 500 meanwhile, to nobody.
            status = 499
        except Exception:
            _LOG.exception("a request failed", extra={"fields": {"request_id": request_id}})
            if status == 499:
                await _error(internal())(scope, receive, marked)
        finally:
            self._traffic.active -= 1
            route = getattr(scope.get("route"), "path", None)
            method = scope["method"] if scope["method"] in _METHODS else "other"
            fields = {"request_id": request_id, "method": method, "route": route, "status": status}
            fields |= {"seconds": round(time.monotonic() - start, 4), **record}
            if (route, status) != ("/health", 200):  # a line every few seconds would say nothing
                _LOG.info("request", extra={"fields": fields})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._traffic.draining:
            await _error(unavailable("the server is shutting down", 5))(scope, receive, send)
            return
        try:
            with self._access.admitted(scope):
                await self._admitted(scope, receive, send)
        except ApiError as error:
            scope["state"]["record"]["error"] = error.code
            if error.status != 413:
                await _body(scope, receive, keep=0)
            await _error(error)(scope, receive, send)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if Headers(scope=scope).get("content-encoding", "identity").lower() != "identity":
            # A few bytes could become any number of them.
            refused = ApiError(415, "the body is compressed: send it as it is", code="unsupported_encoding")
            refused.headers["accept-encoding"] = "identity"
            raise refused
        with self._traffic.holding() as hold:
            body = await _body(scope, receive, hold=hold)
            if body is None:
                message = f"the body has more than {MOST_BODY_BYTES} bytes"
                raise ApiError(413, message, code="request_too_large")
            if body.count(b",") + body.count(b"[") > _MOST_VALUES or body.count(b"{") > _MOST_OBJECTS:
                message = f"the body has more than {_MOST_VALUES} values or {_MOST_OBJECTS} objects"
                raise ApiError(413, message, code="request_too_large")
            await self._app(scope, _again(body, receive), send)


def cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """``app``, which pages of these origins may ask; itself without any."""
    if not origins:
        return app
    exposed = [REQUEST_ID, IGNORED, MAX_TOKENS, SEED, "retry-after"]
    return CORSMiddleware(
        app, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"], expose_headers=exposed
    )


def _error(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


async def _body(
    scope: Scope, receive: Receive, keep: int = MOST_BODY_BYTES, hold: Callable[[int], None] = lambda _more: None
) -> bytes | None:
    """The request's body, None for one of more than ``keep`` bytes; ``hold`` is called with each part's length."""
    said = Headers(scope=scope).get("content-length", "")
    if said.isdigit() and int(said) > _MOST_READ_BYTES:
        return None
    body, read, more = bytearray(), 0, True
    while more and read <= _MOST_READ_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        read += len(part)
        if read <= keep:
            hold(len(part))
            body += part
        more = message.get("more_body", False)
    return bytes(body) if read <= keep else None


def _again(body: bytes, receive: Receive) -> Receive:
    """``receive`` with the body that was taken from it."""
    taken = False

    async def replayed() -> Message:
        nonlocal taken
        if taken:
            return await receive()
        taken = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
