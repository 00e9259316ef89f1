"""What goes wrong, in the shape and with the statuses of OpenAI's API."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from nemo_diffgemma.errors import FieldError
from triton_repo.client.failures import Cancelled, GenerationError, Refused, TimedOut, Unavailable, Unreachable
from triton_repo.gateway.words import Shown, allowed, path

# Seconds after which a client may ask again: a queue moves on quickly, a server needs time to start.
_BUSY_S, _DOWN_S = 1, 5
_MOST_PARAM = 200
_FIELD = re.compile(r"^([a-z_]+)((?:\[\d+\]|\.[a-z_]+)*): ")
# What is wrong with the form of an answer, behind the kind of it and, of tools, the number of the one that it is.
_FORM = re.compile(r"^grammar\.([a-z_]+)(?:\.functions\[(\d+)\](\.[a-z]+)?)?(?:\.text\.json_schema)?")
_FORMS = {"json_schema": "response_format", "json_object": "response_format"}
# Our names of inputs that OpenAI calls otherwise.
_NAMES = {"text_input": "prompt", "input_ids": "prompt", "stop_words": "stop", "client": "user"}


class ErrorDetail(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Body of every answer that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is not a success.

    Args:
        status: of HTTP.
        message: for the user; never holds more of the request than the value that is wrong.
        code: OpenAI's, machine-readable.
        param: field that is wrong.
        retry_after: seconds after which the same request may succeed.
        kind: OpenAI's ``type``; None for the status's own.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after: int | None = None,
        kind: str | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.kind = status, message, code, param, kind
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}

    def rename(self, names: Mapping[str, str]) -> None:
        """Call the field as this endpoint does.

        Args:
            names: a regular expression of the beginning of a field to what stands there instead.
        """
        for ours, theirs in names.items():
            if self.param is not None and (found := re.match(ours, self.param)):
                renamed = found.expand(theirs)
                if self.message.startswith(found[0]):
                    self.message = renamed + self.message[found.end() :]
                self.param = renamed + self.param[found.end() :]
                return

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = self.kind or ("invalid_request_error" if self.status < 500 else "server_error")
        detail = ErrorDetail(message=self.message, type=kind, param=self.param, code=self.code)
        return ErrorBody(error=detail).model_dump()


def refused(message: str) -> ApiError:
    """400 for what the served model, or the client on its way there, refuses; the message begins with the field."""
    if form := _FORM.match(message):
        field = _FORMS.get(form[1], form[1])
        place = f"[{form[2]}].function{form[3] or ''}" if form[2] else ""
        return ApiError(400, f"{field}{place}{message[form.end() :]}", code="invalid_value", param=f"{field}{place}")
    found = _FIELD.match(message)
    param = None if found is None else _NAMES.get(found[1], found[1]) + (found[2] or "")
    return ApiError(400, message, code="invalid_value", param=param)


def unavailable(message: str, retry_after: int = _BUSY_S) -> ApiError:
    """503: the same request may succeed later."""
    return ApiError(503, message, code="unavailable", retry_after=retry_after)


def unauthorized(*, missing: bool) -> ApiError:
    """401: there is no key, or one that nobody has. What was sent is not repeated."""
    what = "you sent no API key" if missing else "this API key is not known here"
    error = ApiError(401, f"{what}; send it as Authorization: Bearer KEY", code="invalid_api_key")
    error.headers["www-authenticate"] = "Bearer" if missing else 'Bearer error="invalid_token"'
    return error


def too_many(kind: str, message: str, retry_after: int) -> ApiError:
    """429: a key's limit on ``kind``, requests or tokens."""
    return ApiError(429, message, code="rate_limit_exceeded", kind=kind, retry_after=retry_after)


def internal() -> ApiError:
    """500, which says no more: what failed is in the server's log, under the request's id."""
    return ApiError(500, "the server failed on this request", code="internal_error")


def of_failure(error: GenerationError | FieldError) -> ApiError:
    """The answer to a client's exception."""
    # Before FieldError, which it is too: that the server is down is no mistake of the user's.
    if isinstance(error, Unreachable):
        return unavailable("the model server does not answer", _DOWN_S)
    if isinstance(error, FieldError | Refused):
        return refused(str(error))
    if isinstance(error, Unavailable):
        # Once it has begun to answer, the exception's text holds an internal address.
        began = isinstance(error.__cause__, Unavailable)
        return unavailable("the model server went away", _DOWN_S) if began else unavailable(str(error))
    if isinstance(error, Cancelled):
        return unavailable("the generation was ended: the server is shutting down", _DOWN_S)
    if isinstance(error, TimedOut):
        return deadline()
    return internal()


def deadline() -> ApiError:
    """504: ``deadline`` ran out before the answer was complete."""
    return ApiError(504, "the deadline ran out before the answer was complete", code="deadline_exceeded")


def of_validation(errors: Sequence[Any]) -> ApiError:
    """400 for the first of pydantic's errors, naming the field.

    Args:
        errors: dictionaries with ``loc``, ``type`` and ``msg``.
    """
    first = errors[0]
    # of an object whose type is another one, all else is wrong too
    first = next((e for e in errors if e["loc"] == (*first["loc"][:-1], "type")), first)
    where = path(first)
    if first["type"] == "json_invalid" or (not where and first["type"] in ("missing", "model_attributes_type")):
        return ApiError(400, "the body is not a JSON object, sent as application/json", code="invalid_json")
    param = where[:_MOST_PARAM]
    match first["type"]:
        case "extra_forbidden":
            return ApiError(400, f"{param}: there is no such field", code="unknown_parameter", param=param)
        case "missing":
            return ApiError(400, f"{param}: this field is required", code="missing_required_parameter", param=param)
        case "unsupported":
            return ApiError(400, f"{param}: {first['msg']}", code="unsupported_parameter", param=param)
        case "wrong" | "bound":
            return ApiError(400, f"{param}: {first['msg']}", code="invalid_value", param=param)
    value = first["input"]["type"] if first["type"] == "type" else first["input"]
    message = FieldError(param, Shown(value), *allowed(first))
    return ApiError(400, str(message), code="invalid_value", param=param)
