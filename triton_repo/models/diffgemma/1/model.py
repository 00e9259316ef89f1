"""The model as Triton's python backend runs it: parse, submit to the engine, send."""

import json
import os
import resource
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb

from nemo_diffgemma.errors import FieldError
from triton_repo.config import check_engine
from triton_repo.python_backend.courier import Call, Courier, Failure, ShuttingDown
from triton_repo.python_backend.decisions import DecisionsAsked, ask_decisions
from triton_repo.python_backend.metrics import Metrics
from triton_repo.python_backend.parameters import parameters_of
from triton_repo.python_backend.parse import Asked, ask
from triton_repo.python_backend.prompt import PROMPTS, TokenIds
from triton_repo.python_backend.readers import Readers
from triton_repo.python_backend.record import Caller, Recorder
from triton_repo.python_backend.reply import Outputs
from triton_repo.python_backend.spans import Spans, trace_context
from triton_repo.python_backend.status import error, marked
from triton_repo.python_backend.telemetry import Telemetry
from triton_repo.tensors import (
    ALLOCATOR,
    CANCEL,
    CANCELLATION_ID,
    DRAIN_VARIABLE,
    ENGINE_CPUS_VARIABLE,
    ENGINE_VARIABLE,
    LOG_PROMPTS_VARIABLE,
)
from trtllm_build.decisions.calibration import read_calibration
from trtllm_build.runtime.process import EngineProcess
from trtllm_build.runtime.scheduler import QueueFull

_STACK = 8 * 2**20  # Linux's usual


class Channel:
    """One request's response sender."""

    def __init__(self, request: Any, forwarded: bool):
        self._forwarded = forwarded
        self._sender = request.get_response_sender()

    def send(self, outputs: Outputs, last: bool) -> None:
        tensors = [pb.Tensor(name, array) for name, array in outputs.items()]
        self._sender.send(pb.InferenceResponse(tensors), flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)

    def fail(self, message: str, why: Failure) -> None:
        sent = error(marked(message, why) if self._forwarded else message, why)
        self._sender.send(pb.InferenceResponse(error=sent), flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())


class TritonPythonModel:
    """Holds the engine; requests join and leave its running batch between denoising steps."""

    def initialize(self, args: dict[str, str]) -> None:
        _restore_limits()
        # Processes of their own: the stub holds Python's lock while it waits for tritonserver. Without them this
        # one ends too, and whoever watches it starts all of them again.
        self.readers = Readers(_end)
        cpus = [int(cpu) for cpu in os.environ.get(ENGINE_CPUS_VARIABLE, "").split(",") if cpu]
        self.engine = EngineProcess(os.environ[ENGINE_VARIABLE], _end, cpus)
        limits = self.engine.limits
        sizes = limits.context, limits.canvas, limits.vocab_size
        self.readers.open(self.engine.tokenizer_directory, *sizes, self.engine.eos_ids)
        self.temperatures = read_calibration(Path(os.environ[ENGINE_VARIABLE]))
        self.engine.grammars.prepare_calls()
        check_engine(json.loads(args["model_config"])["parameters"], self.engine.manifest)
        metrics = Metrics(pb, {"model": args["model_name"], "version": args["model_version"]})
        self.recorder = Recorder(Spans.from_environment())
        self.courier = Courier(Telemetry(metrics, self.engine.progress, self.recorder))

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            parameters = parameters_of(request)
            if CANCEL in parameters:
                self.courier.cancel(parameters[CANCEL])
                request.get_response_sender().send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            name = parameters.pop(CANCELLATION_ID, None)
            call = self.courier.open(Channel(request, forwarded=name is not None), name)
            caller = call.caller = Caller(request.request_id(), trace_context(request))
            try:
                if _draining():
                    raise ShuttingDown("the server is shutting down")
                arrays = _arrays(request)
                call.caller = replace(caller, prompt=_prompt(arrays))
                asked: Asked | DecisionsAsked
                if "questions" in arrays:
                    where = self.engine, self.readers.room
                    asked = ask_decisions(arrays, parameters, *where, self.temperatures)
                else:
                    asked = ask(arrays, parameters, self.engine, self.readers.room)
                call.expect(asked)
                begin = partial(self._begin, call, asked)
                self.readers.read(asked.prompt, call.is_over, begin, asked.request.client)
            except Exception as failure:
                _fail(call, failure)

    def _begin(self, call: Call, asked: Asked | DecisionsAsked, read: TokenIds | Exception) -> None:
        try:
            if isinstance(read, Exception):
                raise read
            call.begin(asked.finish(read, self.engine.limits.context), self.engine)
        except Exception as failure:
            _fail(call, failure)

    def finalize(self) -> None:
        self.readers.close()
        self.engine.close()
        self.courier.close()
        self.recorder.close()


def _fail(call: Call, failure: Exception) -> None:
    """Without an answer the client would wait for ever."""
    if not isinstance(failure, FieldError | QueueFull | ShuttingDown):
        pb.Logger.log_error("".join(traceback.format_exception(failure)))
    call.on_event(failure.with_traceback(None))  # whose frames hold all that the request brought


def _restore_limits() -> None:
    """For the processes below this one: what the launcher set for tritonserver alone."""
    for name, value in ALLOCATOR.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (min(soft, _STACK) if soft >= 0 else _STACK, hard))


def _end() -> None:
    os._exit(1)


def _prompt(arrays: dict[str, Any]) -> str | None:
    """What was asked, where that is to be logged."""
    if os.environ.get(LOG_PROMPTS_VARIABLE) != "1":
        return None
    asked = {name: arrays[name].reshape(-1).tolist() for name in PROMPTS if name in arrays}
    return json.dumps(asked, default=lambda value: value.decode(errors="replace"))


def _draining() -> bool:
    return os.path.exists(os.environ.get(DRAIN_VARIABLE, ""))


def _arrays(request: Any) -> dict[str, Any]:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
