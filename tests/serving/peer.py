"""A gRPC peer that fails on purpose, as often and as long as a test needs: a real server cannot be made to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc


@dataclass
class Peer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Fails each call with ``code`` until it has failed ``failures`` times; a stream after ``responses`` drafts.

    Args:
        code: of the status.
        failures: calls that fail.
        responses: responses that a stream sends before it fails.
        refusal: what a stream says instead of its answer; empty: it answers.
        lingers_s: seconds from the last message of a stream to its end.
        whole: streams that came to their end.
        ids, requests, metadata: of the calls that came, in order.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    failures: int = 0
    responses: int = 0
    refusal: str = ""
    lingers_s: float = 0.0
    whole: int = 0
    ids: list[str] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)

    async def ServerMetadata(self, _request: Any, context: Any) -> Any:
        self.metadata.append(dict(context.invocation_metadata()))
        if len(self.metadata) <= self.failures:
            await context.abort(self.code, "on purpose")
        return service_pb2.ServerMetadataResponse(name="peer", version="1")

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        self.metadata.append(dict(context.invocation_metadata()))
        async for request in requests:
            self.ids.append(request.id)
            self.requests.append(request)
        for _ in range(self.responses):
            yield _response("")
        if len(self.ids) <= self.failures:
            await context.abort(self.code, "on purpose")
        yield service_pb2.ModelStreamInferResponse(error_message=self.refusal) if self.refusal else _response("length")
        await asyncio.sleep(self.lingers_s)
        self.whole += 1


def _response(finish_reason: str) -> Any:
    response = service_pb2.ModelInferResponse()
    values: dict[str, tuple[str, bytes]] = {
        "text_output": ("BYTES", b"\x00\x00\x00\x00"),
        "output_ids": ("INT32", b"\x05\x00\x00\x00"),
        "finish_reason": ("BYTES", len(finish_reason).to_bytes(4, "little") + finish_reason.encode()),
        "provisional": ("BOOL", b"\x00"),
        "canvas_index": ("INT32", bytes(4)),
        "denoising_steps": ("INT32", bytes(4)),
    }
    for name, (datatype, content) in values.items():
        response.outputs.add(name=name, datatype=datatype, shape=[1, 1])
        response.raw_output_contents.append(content)
    return service_pb2.ModelStreamInferResponse(infer_response=response)


@contextlib.asynccontextmanager
async def serving(peer: Peer, creds: grpc.ServerCredentials | None = None) -> AsyncIterator[str]:
    """``peer`` on a free port of loopback; gives its url."""
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(peer, server)
    address = "localhost:0"
    port = server.add_insecure_port(address) if creds is None else server.add_secure_port(address, creds)
    await server.start()
    try:
        yield f"localhost:{port}"
    finally:
        await server.stop(None)
