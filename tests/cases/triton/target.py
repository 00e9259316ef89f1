"""A server under attack, and the honest question that it has to go on answering."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from triton_repo.tensors import MODEL

Given = tuple[str, list[int], bytes]
# Its errors then have a status, and end the stream.
_PATIENCE_S = 10.0
GRPC_ERROR = (("triton_grpc_error", "true"),)


def int32(*values: int) -> bytes:
    """As tensors hold them."""
    return struct.pack(f"<{len(values)}i", *values)


def text(value: bytes) -> bytes:
    """One element of a BYTES tensor."""
    return struct.pack("<I", len(value)) + value


class Served(Protocol):
    """Where a server is: a running :class:`~triton_repo.launcher.server.Server`, or what another process knows of it."""

    @property
    def grpc_url(self) -> str: ...
    @property
    def http_url(self) -> str: ...
    @property
    def pid(self) -> int: ...


class Target:
    """Raw gRPC and HTTP to ``server``."""

    def __init__(self, server: Served):
        self.server = server
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(server.grpc_url, options=unlimited)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    @staticmethod
    def request(model: str = MODEL, **given: Given | None) -> Any:
        """A request for four tokens of ``red``; ``given`` by name instead of that or beside it, None to leave out."""
        usual: dict[str, Given | None] = {
            "text_input": ("BYTES", [1, 1], text(b"red")),
            "max_tokens": ("INT32", [1, 1], int32(4)),
            "max_denoising_steps": ("INT32", [1, 1], int32(2)),
        }
        request = service_pb2.ModelInferRequest(model_name=model, id="hostile")
        for name, tensor in (usual | given).items():
            if tensor is not None:
                request.inputs.add(name=name, datatype=tensor[0], shape=tensor[1])
                request.raw_input_contents.append(tensor[2])
        return request

    def ask(self, request: Any, metadata: Sequence[tuple[str, str]] = (), compression: Any = None) -> str:
        """What the client is told: ``OK``, or a status and a message."""
        options = {"timeout": 120, "metadata": metadata, "compression": compression}
        try:
            if request.model_name != MODEL:
                self.stub.ModelInfer(request, **options)
                return "OK"
            errors = [a.error_message for a in self.stub.ModelStreamInfer(iter([request]), **options)]
            return next((f"error {error}" for error in errors if error), "OK")
        except grpc.RpcError as error:
            return f"{error.code().name} {error.details()}"

    def call(self, method: str, request: Any, metadata: Sequence[tuple[str, str]] = ()) -> str:
        """The same of a call that is no inference."""
        try:
            getattr(self.stub, method)(request, timeout=60, metadata=metadata)
        except grpc.RpcError as error:
            return f"{error.code().name} {error.details()}"
        return "OK"

    def named(self, path: str, request: Any) -> str:
        """The same of a call by its whole path."""
        call = self._channel.unary_unary(path, request_serializer=type(request).SerializeToString)
        try:
            call(request, timeout=60)
        except grpc.RpcError as error:
            return f"{error.code().name} {error.details()}"
        return "OK"

    def http(self, path: str, body: bytes = b"", headers: dict[str, str] | None = None, method: str = "POST") -> str:
        """Status and body."""
        connection = HTTPConnection(urlsplit(self.server.http_url).netloc, timeout=120)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return f"{answer.status} {answer.read().decode(errors='replace')}"
        finally:
            connection.close()

    def honest(self) -> bytes:
        """The answer to an honest question, every output of it.

        A thousand cancelled requests fill the queue until the server has looked at each, a second; who is told so asks
        again, as this project's client does.
        """
        end = time.monotonic() + _PATIENCE_S
        while True:
            (answer,) = self.stub.ModelStreamInfer(iter([self.request()]), timeout=60)
            if "wait already; the limit is" not in answer.error_message or time.monotonic() > end:
                break
            time.sleep(0.05)
        assert not answer.error_message, answer.error_message
        return b"".join(answer.infer_response.raw_output_contents)

    def memory(self) -> dict[str, int]:
        """Memory of its own, in KiB, of the engine and of the process that serves the model."""
        found = {}
        for pid in _below(self.server.pid):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            for name, part in (("engine", b"runtime.process"), ("model", b"models/diffgemma/")):
                if part in command:
                    found[name] = _anonymous(pid)
        return found


def _below(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [p for file in files for child in file.read_text().split() for p in (int(child), *_below(int(child)))]


def _anonymous(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
