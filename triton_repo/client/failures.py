"""How a call to the server can fail, as exceptions that say whose turn it is."""

from __future__ import annotations

import re

import grpc

from nemo_diffgemma.errors import FieldError

_REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
)


class GenerationError(RuntimeError):
    """The server refused the request or failed; the message is the server's."""


class Refused(GenerationError):
    """The request cannot be honoured as it is: the client's mistake, and no use to send it again."""


class Unavailable(GenerationError):
    """Not now: the queue is full, the server is starting or ending. The same request may succeed later."""


class Unreachable(Unavailable, FieldError):
    """No server answers at the url."""

    def __init__(self, url: str, *, tls: bool, details: str):
        # Without TLS there is little more to say than that nobody listens.
        allowed = "the host:port of a running server" + f" that speaks TLS and trusts this client ({details})" * tls
        FieldError.__init__(self, "url", url, allowed, "start one: make serve (or diffgemma-serve --engine DIR)")


class TimedOut(GenerationError):
    """The call's ``timeout`` ran out."""


class Cancelled(GenerationError):
    """Somebody else ended it: the server, or who closed this client."""


# An error of a stream comes without its status; then its text decides. A FieldError, the refusals of scheduler,
# readers and drain, and what tritonserver itself says of a request that it has not handed to a model.
_REFUSAL = re.compile(
    r"^[\w.\[\]]+(?: at .*)?: .* cannot be used; allowed: |^Request for unknown model: .* is not found$", re.DOTALL
)
_NOT_NOW = re.compile(
    r"^\d+ requests wait already; the limit is \d+$|^the queue is full: |^the server is shutting down"
    r"|has no available versions|is not at ready state|Server is stopping|Server exiting"
)


def unqualified(message: str) -> GenerationError:
    """The exception for an error's text."""
    # In this order: a refusal may repeat a value that reads like the other.
    if _REFUSAL.search(message):
        return Refused(message)
    return Unavailable(message) if _NOT_NOW.search(message) else GenerationError(message)


def explained(error: grpc.RpcError) -> GenerationError:
    """The exception for a gRPC status; its message is the status's details.

    Args:
        error: has ``code()`` and ``details()``.
    """
    code, details = error.code(), error.details() or ""
    if code in _REFUSALS:
        return Refused(details)
    if code == grpc.StatusCode.UNAVAILABLE:
        return Unavailable(details)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOut(details)
    if code == grpc.StatusCode.CANCELLED:
        return Cancelled(details)
    return GenerationError(details or code.name)
