"""Errors as Triton's python backend sends them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb

if TYPE_CHECKING:
    from triton_repo.python_backend.courier import Failure  # which brings the engine, and torch


_MARK = "diffgemma-"


def error(message: str, why: Failure) -> Any:
    """A ``TritonError`` with the status that ``why`` stands for."""
    # Not at the head of the file: the stub puts its names into the module once the model is imported.
    codes = {"refused": pb.TritonError.INVALID_ARG, "unavailable": pb.TritonError.UNAVAILABLE}
    return pb.TritonError(message, codes.get(why, pb.TritonError.INTERNAL))


def marked(message: str, why: Failure) -> str:
    """``message`` for another model of this server: between models tritonserver 2.51 makes every status INTERNAL."""
    return f"{_MARK}{why}:{message}"


def unmarked(message: str) -> tuple[str, Failure]:
    """What :func:`marked` was given; any other message is a failure."""
    for why in ("refused", "unavailable", "failed"):
        start = marked("", why)
        if message.startswith(start):
            return message.removeprefix(start), why
    return message, "failed"
