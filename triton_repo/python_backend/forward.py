"""Other entries of the served model: they translate, pass on to it inside tritonserver, and translate back."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import triton_python_backend_utils as pb

from nemo_diffgemma.errors import FieldError
from triton_repo.python_backend import LOOK_S
from triton_repo.python_backend.parameters import check_parameters, parameters_of
from triton_repo.python_backend.spans import trace_context
from triton_repo.python_backend.status import error, unmarked
from triton_repo.tensors import CANCEL, CANCELLATION_ID, FORWARDED, MODEL

if TYPE_CHECKING:
    from triton_repo.python_backend.courier import Failure  # which brings the engine, and torch


class Translation(Protocol):
    """What an entry is, beside passing on."""

    outputs: tuple[str, ...]
    """Outputs of the served model that it needs."""

    def inputs(self, request: Any, /) -> dict[str, Any]:
        """Inputs of the served model by name, numpy, shape ``[1, *dims]``.

        Raises:
            FieldError: for what this entry cannot do.
        """

    def response(self, outputs: dict[str, Any], /) -> list[Any]:
        """Output tensors of this entry for a response of the served model."""

    def message(self, text: str, /) -> str:
        """An error of the served model in the words of this entry."""


class ForwardedCall:
    """The way back to one request's client. After its last response it is never asked again whether it has gone:

    tritonserver 2.51 has forgotten it then, and crashes.
    """

    def __init__(self, request: Any):
        self._sender = request.get_response_sender()
        self._lock = threading.Lock()
        self._ended = False

    def send(self, response: Any, last: bool) -> None:
        """One response; nothing after the last one."""
        with self._lock:
            if not self._ended:
                self._ended = last
                self._sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)

    def fail(self, message: str, why: Failure) -> None:
        """An error, which is the last response."""
        self.send(pb.InferenceResponse(error=error(message, why)), last=True)

    def has_gone(self) -> bool:
        """Whether nobody waits for the answer any more."""
        with self._lock:
            return not self._ended and bool(self._sender.is_cancelled())


class Forwarder:
    """Passes requests on, each from a thread of its own, and their cancellation.

    tritonserver 2.51 cannot cancel what one model asked of another, so the request carries a name that nobody can
    guess, and a second one with that name ends it.

    Args:
        entry: translates.
    """

    def __init__(self, entry: Translation):
        self._entry = entry
        self._open: dict[str, ForwardedCall] = {}  # by cancellation id
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(FORWARDED, thread_name_prefix="forward")  # others wait here
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._watcher.start()

    def execute(self, requests: list[Any]) -> None:
        """What a python model's ``execute`` is to do."""
        for request in requests:
            caller = ForwardedCall(request)
            try:
                parameters = parameters_of(request)
                check_parameters(parameters)
                inputs = self._entry.inputs(request)
                if (context := trace_context(request)) and "traceparent" not in inputs:
                    inputs["traceparent"] = np.array([[context.encode()]], dtype=object)
                self._pool.submit(self._forward, request.request_id(), parameters, inputs, caller)
            except Exception as failure:
                caller.fail(str(failure), "refused" if isinstance(failure, FieldError) else "failed")

    def close(self) -> None:
        """Wait for what is under way, and end the threads."""
        self._pool.shutdown()
        self._closing.set()
        self._watcher.join()

    def _forward(
        self, request_id: str, parameters: dict[str, Any], inputs: dict[str, Any], caller: ForwardedCall
    ) -> None:
        if caller.has_gone():
            caller.fail("the client has gone", "unavailable")
            return
        name = secrets.token_hex(16)
        with self._lock:
            self._open[name] = caller
        try:
            self._answer(_ask(request_id, parameters, inputs, self._entry.outputs, name), caller)
        except Exception as failure:
            caller.fail(f"{type(failure).__name__}: {failure}", "failed")
        finally:
            with self._lock:
                self._open.pop(name, None)

    def _answer(self, responses: Iterator[Any], caller: ForwardedCall) -> None:
        for response in responses:
            if response.has_error():
                message, why = unmarked(response.error().message())
                caller.fail(self._entry.message(message), why)
                return
            if not response.output_tensors():
                continue  # the bare end of the stream
            outputs = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
            last = bool(outputs["finish_reason"].item())
            caller.send(pb.InferenceResponse(self._entry.response(outputs)), last)
            if last:
                return
        caller.fail("the model ended without an answer", "failed")

    def _watch(self) -> None:
        while not self._closing.wait(LOOK_S):
            with self._lock:
                opened = list(self._open.items())
            for name, caller in opened:
                if caller.has_gone():
                    with self._lock:
                        self._open.pop(name, None)
                    _cancel(name)


class ForwardingModel:
    """A python model of Triton that is an entry; a subclass says which."""

    entry: Translation

    def initialize(self, _args: dict[str, str]) -> None:
        self._forwarder = Forwarder(self.entry)

    def execute(self, requests: list[Any]) -> None:
        self._forwarder.execute(requests)

    def finalize(self) -> None:
        self._forwarder.close()


def _ask(
    request_id: str, parameters: dict[str, Any], inputs: dict[str, Any], outputs: tuple[str, ...], name: str
) -> Iterator[Any]:
    request = pb.InferenceRequest(
        model_name=MODEL,
        request_id=request_id,
        requested_output_names=list(outputs),
        inputs=[pb.Tensor(tensor, array) for tensor, array in inputs.items()],
        parameters={**parameters, CANCELLATION_ID: name},
    )
    yield from request.exec(decoupled=True)


def _cancel(name: str) -> None:
    nothing = pb.Tensor("max_tokens", np.array([[1]], dtype=np.int32))  # Triton wants one input
    request = pb.InferenceRequest(
        model_name=MODEL, requested_output_names=["finish_reason"], inputs=[nothing], parameters={CANCEL: name}
    )
    for _ in request.exec(decoupled=True):
        pass
