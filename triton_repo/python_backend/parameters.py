"""Parameters of a Triton request: beside its tensors, what tritonserver takes out of them for itself included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nemo_diffgemma.errors import FieldError, require
from triton_repo.tensors import SUPPORTED

TIMEOUT = "timeout"  # Triton's own, in microseconds
_MOST_TIMEOUT = 2**63 - 1
# as triton_python_backend_utils has them
_SEQUENCE_FLAGS = {"sequence_start": 1, "sequence_end": 2}


def parameters_of(request: Any) -> dict[str, Any]:
    """All that a python model is told of a request's parameters, by the names under which clients send them.

    tritonserver keeps ``priority`` and tells nobody.
    """
    found: dict[str, Any] = json.loads(request.parameters())
    if timeout := request.timeout():
        found[TIMEOUT] = timeout if timeout <= _MOST_TIMEOUT else timeout - 2**64  # as it was sent
    if sequence := request.correlation_id():
        found["sequence_id"] = sequence
    for name, flag in _SEQUENCE_FLAGS.items():
        if request.flags() & flag:
            found[name] = True
    return found


def check_parameters(parameters: Mapping[str, object]) -> None:
    """Refuse request parameters that mean nothing here.

    Raises:
        FieldError: for the first of them.
    """
    for name, value in parameters.items():
        if name == "id":  # of the request, for Triton, whose HTTP endpoints pass it on
            continue
        if name == TIMEOUT:
            good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_TIMEOUT
            allowed = f"microseconds from arrival, 1 to {_MOST_TIMEOUT}"
            require(good, field=name, value=value, allowed=allowed, fix="leave it out, or send deadline in seconds")
            continue
        raise FieldError(field=name, value=value, allowed=f"only these inputs: {SUPPORTED}", fix="leave it out")
