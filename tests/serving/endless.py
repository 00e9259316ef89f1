"""Requests that run much longer than any test waits."""

from typing import Any

from tests.cases.triton.target import Target, int32
from triton_repo.tensors import MOST_STEPS, UNARY_MODEL

# Inputs of :meth:`triton_repo.client.client.Client.generate`; a draft of every step says that it runs.
ENDLESS: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "max_denoising_steps": 1024, "drafts": True}


def endless_call() -> Any:
    """The same for plain ``ModelInfer``, which has no drafts."""
    return Target.request(
        UNARY_MODEL,
        max_tokens=("INT32", [1, 1], int32(200)),
        ignore_eos=("BOOL", [1, 1], b"\1"),
        max_denoising_steps=("INT32", [1, 1], int32(MOST_STEPS)),
    )
