"""A typed, asynchronous, streaming client of the served model, over gRPC."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

from triton_repo.client.connection import Tries, credentials, open_channel
from triton_repo.client.decisions import Decided, decided, inputs_of
from triton_repo.client.failures import (
    Cancelled,
    GenerationError,
    Refused,
    TimedOut,
    Unavailable,
    Unreachable,
    explained,
    unqualified,
)
from triton_repo.client.protocol import ModelReadyRequest, ServerMetadataRequest, Stub
from triton_repo.client.settings import DEFAULT_URL, Retry, Tls
from triton_repo.client.wire import Response, decode, encode
from triton_repo.tensors import MODEL

__all__ = [
    "DEFAULT_URL",
    "Cancelled",
    "Client",
    "Decided",
    "GenerationError",
    "Refused",
    "Response",
    "Retry",
    "ServerMetadata",
    "TimedOut",
    "Tls",
    "Unavailable",
    "Unreachable",
]

_END_S = 1.0  # a stream with nothing more to come ends sooner
_NO_CONNECTION = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.CONNECTING)


@dataclass(frozen=True)
class ServerMetadata:
    """What the server calls itself."""

    name: str
    version: str
    extensions: tuple[str, ...]


class Client:
    """A connection to the service, of one event loop; each generation is a stream of its own.

    ::

        async with Client("127.0.0.1:8001") as client:
            async for response in client.generate("To JSON: ...", max_tokens=64):
                print(response.text, end="")

    Args:
        url: host and port of the gRPC endpoint.
        tls: files for TLS; default: plain text.
        retry: when a server that is not available is asked again.

    Raises:
        FieldError: for a file of ``tls`` that cannot be read.
    """

    def __init__(self, url: str = DEFAULT_URL, *, tls: Tls | None = None, retry: Retry | None = None):
        self.url = url
        self._retry = retry or Retry()
        self._credentials = None if tls is None else credentials(tls)
        self._name = None if tls is None else tls.name
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; generations under way are cancelled and raise :class:`Cancelled`."""
        if self._channel is not None:
            await self._channel.close()

    async def is_ready(self, *, model: str = MODEL, timeout: float | None = 5.0) -> bool:
        """Whether the server says that it serves ``model``; one try, False when nobody answers.

        Args:
            model: its name in Triton.
            timeout: seconds to wait for the answer.
        """
        try:
            found = await self._stub().ModelReady(ModelReadyRequest(name=model), timeout=timeout)
        except grpc.RpcError:
            return False
        return bool(found.ready)

    async def server_metadata(self, *, timeout: float | None = None) -> ServerMetadata:
        """The server's name, version and extensions.

        Args:
            timeout: seconds for all tries together; default: no limit.

        Raises:
            Unreachable: when no server answers at the url.
            GenerationError: when it does not answer this.
        """
        tries, end = Tries(self._retry), _end(timeout)
        while True:
            try:
                found = await self._stub().ServerMetadata(ServerMetadataRequest(), timeout=_left(end))
                return ServerMetadata(found.name, found.version, tuple(found.extensions))
            except grpc.RpcError as error:
                failure = self._failure(error)
                if not isinstance(failure, Unavailable) or not await tries.another():
                    raise failure from error

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        grammar: Mapping[str, Any] | None = None,
        input_ids: Sequence[int] | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        stream: bool = True,
        drafts: bool = False,
        ignore_eos: bool = False,
        temperature: float | None = None,
        top_p: float | None = None,
        max_denoising_steps: int | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
        entropy_bound: float | None = None,
        confidence_threshold: float | None = None,
        stability_threshold: int | None = None,
        request_id: str = "",
        model: str = MODEL,
        timeout: float | None = None,
        **others: object,
    ) -> AsyncGenerator[Response, None]:
        """Generate, response by response.

        Whatever ends the iteration early cancels on the server: the task is cancelled, the iterator closed, the loop
        left. Python closes an iterator that a loop left when nobody holds it any more; use
        :func:`contextlib.aclosing` where a name does.

        Args:
            prompt: raw text; exactly one of it, ``messages`` and ``input_ids``.
            messages: conversation, ``{"role": ..., "content": ...}`` each, for the checkpoint's chat template.
            grammar: form of the answer, exactly one of ``{"json_schema": {...}}``, ``{"json_object": True}``,
                ``{"regex": "..."}``, ``{"choice": ["...", ...]}`` and ``{"tools": {"functions": [...], ...}}``, as
                :func:`trtllm_build.grammar.tools.tools_expression` takes it; ``messages`` then declare the tools.
            input_ids: token ids.
            max_tokens: most tokens to return; default: all that the context has left.
            seed: all randomness follows from it; default 0.
            stream: a response for every block; else one with everything.
            drafts: also provisional canvases, one after every denoising step.
            ignore_eos: go on to ``max_tokens``.
            temperature, top_p: how tokens are drawn, see :class:`~trtllm_build.sampling.Sampling`; default 1.
            max_denoising_steps, t_min, t_max, entropy_bound, confidence_threshold, stability_threshold: as in
                :class:`~trtllm_build.sampling.SamplerConfig`; default: the checkpoint's.
            request_id: name of the request in the server's log; default: a new one.
            model: its name in Triton.
            timeout: seconds for all of it, tries and responses; default: no limit.
            others: further inputs of the served model by name; it refuses those that it does not support.

        Raises:
            FieldError: at once, when a value does not fit its input's type.
            Unreachable: when no server answers at the url.
            Unavailable: when the server has no room, is ending, or went away.
            Refused: with the server's message, for a request that it cannot honour.
            TimedOut: when ``timeout`` ran out.
            Cancelled: when this client was closed meanwhile.
            GenerationError: with the server's message, when it fails otherwise; base of the five before.
        """
        values = {
            "text_input": prompt,
            "messages": None if messages is None else json.dumps(list(messages)),
            "grammar": None if grammar is None else json.dumps(grammar),
            "input_ids": input_ids,
            "max_tokens": max_tokens,
            "seed": seed,
            "stream": stream,
            "drafts": drafts,
            "ignore_eos": ignore_eos,
            "temperature": temperature,
            "top_p": top_p,
            "max_denoising_steps": max_denoising_steps,
            "t_min": t_min,
            "t_max": t_max,
            "entropy_bound": entropy_bound,
            "confidence_threshold": confidence_threshold,
            "stability_threshold": stability_threshold,
            **others,
        }
        request = encode(values, request_id or uuid.uuid4().hex, model)
        # Not triton_grpc_error, which asks for the status of an error in a stream: tritonserver 2.51 crashes when an
        # error that it sends so meets a cancellation.
        return self._responses(request, timeout)

    async def decide(
        self,
        input: str | None = None,
        questions: Sequence[Mapping[str, Any]] = (),
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        order: str | None = None,
        joint: bool | None = None,
        samples: int | None = None,
        seed: int | None = None,
        request_id: str = "",
        timeout: float | None = None,
        **others: object,
    ) -> Decided:
        """Ask questions about a text or a conversation; they are answered with probabilities.

        Args:
            input: what the questions are about; exactly one of it and ``messages``.
            questions: ``{"type": "predicate", "instructions": ..., "name"?}`` each; with ``"choices": [{"value",
                "description"?}, ...]`` a ``choice``, with ``"levels": [{"label", "description"?}, ...]`` a ``score``.
            messages: conversation, as in :meth:`generate`.
            order: ``permute`` averages over orders of the options; default ``given``.
            joint: ask as many questions at once as fit into a canvas; default: each alone.
            samples: reads with different noise that are averaged; default 1.
            seed, request_id, timeout, others: as in :meth:`generate`.

        Raises:
            FieldError: at once, when a value does not fit its input's type.
            GenerationError: as in :meth:`generate`.
        """
        given = {"order": order, "joint": joint, "samples": samples, "seed": seed, **others}
        request = encode(inputs_of(input, messages, questions, given), request_id or uuid.uuid4().hex)
        async with aclosing(self._responses(request, timeout)) as responses:
            return decided(await anext(responses))

    async def _responses(self, request: Any, timeout: float | None) -> AsyncGenerator[Response, None]:
        """All responses of the first try that yields one."""
        tries, end = Tries(self._retry), _end(timeout)
        while True:
            answered = False
            try:
                async with aclosing(self._once(request, _left(end))) as responses:
                    async for response in responses:
                        answered = True
                        yield response
                return
            except Unavailable as error:
                if answered:
                    raise Unavailable(f"the server at {self.url} went away: {error}") from error
                if not await tries.another():
                    raise

    async def _once(self, request: Any, timeout: float | None) -> AsyncGenerator[Response, None]:
        call = self._stub().ModelStreamInfer(iter([request]), timeout=timeout)
        complete = ended = False
        try:
            async for message in call:
                if message.error_message:
                    ended = True
                    raise unqualified(message.error_message)
                response = decode(message.infer_response)
                complete = ended = response.finish_reason is not None
                yield response
        except grpc.RpcError as error:
            raise self._failure(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # gRPC says this way, to tasks that nobody has cancelled, that their channel was closed.
            raise Cancelled("the connection was closed") from None
        finally:
            if ended:
                # Of a stream that is cancelled in the moment in which it ends tritonserver 2.51 keeps 5 kB for ever.
                with suppress(grpc.RpcError, TimeoutError):
                    async with asyncio.timeout(_END_S):
                        async for _ in call:
                            pass
            call.cancel()
        if not complete:
            # As tritonserver does to streams that outlive its exit timeout.
            raise Unavailable("it ended the stream before the answer was complete")

    def _stub(self) -> Stub:
        # Here and not in __init__: a channel belongs to the event loop that runs when it is made.
        if self._channel is None:
            self._channel = open_channel(self.url, self._credentials, self._name)
        return Stub(self._channel)

    def _failure(self, error: grpc.RpcError) -> GenerationError:
        """The error a user can act on."""
        failure = explained(error)
        if type(failure) is Unavailable and self._channel is not None and self._channel.get_state() in _NO_CONNECTION:
            return Unreachable(self.url, tls=self._credentials is not None, details=str(failure))
        return failure


def _end(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())
