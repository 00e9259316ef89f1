"""A typed streaming client of the served model, over gRPC; ``diffgemma``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nemo_diffgemma.errors import FieldError
from triton_repo.terminal import DEFAULT_URL, parse_arguments, show
from triton_repo.wire import Response, decode, encode

# gRPC's own limit of 4 MB would cut a long prompt's messages.
_MAX_MESSAGE_BYTES = 2**31 - 1


class GenerationError(RuntimeError):
    """The server refused the request or failed; the message is the server's."""


@dataclass(frozen=True)
class ServerMetadata:
    """What the server calls itself."""

    name: str
    version: str
    extensions: tuple[str, ...]


class Client:
    """A connection to the service; threads may share it, each generation is a stream of its own.

    Args:
        url: host and port of the gRPC endpoint.
    """

    def __init__(self, url: str = DEFAULT_URL):
        self.url = url
        size = [("grpc.max_send_message_length", _MAX_MESSAGE_BYTES)]
        size += [("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)]
        self._channel = grpc.insecure_channel(url, options=size)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; generations under way are cancelled."""
        self._channel.close()

    def server_metadata(self) -> ServerMetadata:
        """The server's name, version and extensions.

        Raises:
            FieldError: when no server answers at the url.
        """
        try:
            found = self._stub.ServerMetadata(service_pb2.ServerMetadataRequest())
        except grpc.RpcError as error:
            raise self._explained(error) from error
        return ServerMetadata(found.name, found.version, tuple(found.extensions))

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        input_ids: Sequence[int] | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        stream: bool = True,
        drafts: bool = False,
        ignore_eos: bool = False,
        max_denoising_steps: int | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
        entropy_bound: float | None = None,
        confidence_threshold: float | None = None,
        stability_threshold: int | None = None,
        request_id: str = "",
        **others: object,
    ) -> Generator[Response, None, None]:
        """Generate, response by response; closing the iterator early cancels on the server.

        Args:
            prompt: raw text; exactly one of it, ``messages`` and ``input_ids``.
            messages: conversation, ``{"role": ..., "content": ...}`` each, for the checkpoint's chat template.
            input_ids: token ids.
            max_tokens: most tokens to return; default: all that the context has left.
            seed: all randomness follows from it; default 0.
            stream: a response for every block; else one with everything.
            drafts: also provisional canvases, one after every denoising step.
            ignore_eos: go on to ``max_tokens``.
            max_denoising_steps, t_min, t_max, entropy_bound, confidence_threshold, stability_threshold: as in
                :class:`~trtllm_build.runtime.request.SamplerConfig`; default: the checkpoint's.
            request_id: name of the request in the server's log.
            others: further inputs of the served model by name; it refuses those that it does not support.

        Raises:
            FieldError: when no server answers at the url, or a value does not fit its input's type.
            GenerationError: with the server's message, when it refuses the request or fails.
        """
        values = {
            "text_input": prompt,
            "messages": None if messages is None else json.dumps(list(messages)),
            "input_ids": input_ids,
            "max_tokens": max_tokens,
            "seed": seed,
            "stream": stream,
            "drafts": drafts,
            "ignore_eos": ignore_eos,
            "max_denoising_steps": max_denoising_steps,
            "t_min": t_min,
            "t_max": t_max,
            "entropy_bound": entropy_bound,
            "confidence_threshold": confidence_threshold,
            "stability_threshold": stability_threshold,
            **others,
        }
        return self._responses(encode(values, request_id))

    def _responses(self, request: Any) -> Generator[Response, None, None]:
        call = self._stub.ModelStreamInfer(iter([request]))
        answered = False
        try:
            for message in call:
                answered = True
                if message.error_message:
                    raise GenerationError(message.error_message)
                yield decode(message.infer_response)
        except grpc.RpcError as error:
            if answered:
                raise GenerationError(f"the server at {self.url} went away: {error.details()}") from error
            raise self._explained(error) from error
        finally:
            call.cancel()

    def _explained(self, error: grpc.RpcError) -> Exception:
        """The error a user can act on."""
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            remedy = "start one: make serve (or diffgemma-serve --engine DIR)"
            return FieldError("url", self.url, "the host:port of a running server", remedy)
        return GenerationError(f"{error.code().name}: {error.details()}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The ``diffgemma`` command. Returns 0, 1 when the server refuses, 2 for a mistake here, 130 after Ctrl-C."""
    options = parse_arguments(arguments)
    try:
        with Client(options.url) as client, closing(client.generate(**options.inputs)) as responses:
            show(responses, options.output)
    except KeyboardInterrupt:
        # Leaving the block closed the stream, by which the server cancels.
        print("cancelled: the server was told to stop this generation", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the pipe has enough; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (FieldError, GenerationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, GenerationError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
