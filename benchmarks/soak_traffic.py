"""The soak's clients: what they ask, what they cancel, and how every request of theirs ended."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import grpc
import httpx
from tritonclient.grpc import service_pb2_grpc

from benchmarks.soak_requests import MALFORMED, Known, over_long
from triton_repo.client.client import Client, GenerationError, Refused, Retry, Unavailable, Unreachable
from triton_repo.client.failures import explained, unqualified
from triton_repo.tensors import MODEL

CLIENTS = 32
NAMES = ("north", "east", "south", "west")
GRPC, OPENAI = "gRPC", "OpenAI"
_THROUGH_GATEWAY = 0.25  # of plain requests, where there is one
SHARES = {"cancelled": 10, "malformed": 5, "over-long": 2}  # of a hundred requests; the others are plain
_PATIENCE_S = 300.0  # a request that has not ended by then hangs


@dataclass
class Seen:
    """What the clients saw.

    Args:
        sent: requests.
        ends: how many ended ``answered``, ``refused``, ``cancelled`` or ``unavailable``.
        by_model: of those refused, how many the served model refused; the others tritonserver did itself.
        reasons: finish reasons of those answered.
        kinds: requests by what they were meant to be.
        ended_at: seconds since the beginning, and how.
        problems: what must not happen, in words.
        tokens: output tokens of answered requests, and of the parts of cancelled ones that came.
        took_s: seconds of each plain request that was answered, by where it was sent: ``gRPC``, ``OpenAI``.
    """

    sent: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    by_model: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    ended_at: list[tuple[float, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tokens: int = 0
    took_s: dict[str, list[float]] = field(default_factory=lambda: {GRPC: [], OPENAI: []})


def kinds() -> list[str]:
    """What a hundred requests are, the rare ones spread out evenly; which client gets which is up to their speed."""
    rare = [((i + 0.5) / count, kind) for kind, count in SHARES.items() for i in range(count)]
    plain = 100 - len(rare)
    return [kind for _, kind in sorted([*rare, *(((i + 0.5) / plain, "plain") for i in range(plain))])]


class Traffic:
    """Closed-loop clients against one server.

    Args:
        url: of its gRPC endpoint.
        short, long: requests with known answers.
        context: tokens that the engine's context holds.
        seconds: after which no request is sent any more.
        clients: how many.
        openai_url: of a gateway, which then gets a quarter of the plain requests.
    """

    def __init__(
        self,
        url: str,
        short: list[Known],
        long: list[Known],
        context: int,
        seconds: float,
        clients: int,
        openai_url: str | None = None,
    ):
        self.seen = Seen()
        self._url = url
        self._short = short
        self._long = long
        self._context = context
        self._seconds = seconds
        self._clients = clients
        self._openai_url = openai_url
        self._began = 0.0
        self._kinds = cycle(kinds())

    async def run(self) -> None:
        """Send until the time is over, then wait for what is under way."""
        self._began = time.perf_counter()
        async with (
            Client(self._url, retry=Retry(attempts=1)) as client,
            grpc.aio.insecure_channel(self._url) as channel,
            httpx.AsyncClient(timeout=_PATIENCE_S, trust_env=False) as self._http,
            asyncio.TaskGroup() as group,
        ):
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for number in range(self._clients):
                group.create_task(self._client(number, client, stub))

    async def _client(self, number: int, client: Client, stub: Any) -> None:
        draw = random.Random(number)
        name = NAMES[number % len(NAMES)]
        while time.perf_counter() - self._began < self._seconds:
            kind = next(self._kinds)
            if kind == "cancelled":
                # It may be answered first; then it has to be answered rightly.
                end = await self._counted(kind, self._cancelled(client, draw, name))
            elif kind == "malformed":
                end = await self._counted(kind, self._malformed(stub, draw))
            elif kind == "over-long":
                asked = {"max_tokens": 8, **over_long(draw, self._context)}
                end = await self._counted(kind, self._must_refuse(client, asked, name))
            elif self._openai_url is not None and draw.random() < _THROUGH_GATEWAY:
                asking = self._through_gateway(self._openai_url, draw.choice(self._short), name)
                end = await self._counted(kind, self._timed(OPENAI, asking))
            else:
                style = draw.choice(({}, {}, {"stream": False}, {"drafts": True}))
                asking = self._answered(client, draw.choice(self._short), name, style)
                end = await self._counted(kind, self._timed(GRPC, asking))
            if end in ("unavailable", "unreachable"):
                await asyncio.sleep(0.1)

    async def _counted(self, kind: str, request: Any) -> str:
        """Run one request; whatever happens, it is counted once."""
        seen = self.seen
        seen.sent += 1
        seen.kinds[kind] += 1
        try:
            async with asyncio.timeout(_PATIENCE_S):
                end: str = await request
        except Refused as error:
            end = "refused"
            self._refusal(str(error))
            if kind in ("plain", "cancelled"):
                seen.problems.append(f"{kind}: refused: {error}")
        except Unreachable as error:
            end = "unreachable"
            seen.problems.append(f"{kind}: {error}")
        except Unavailable as error:
            end = "unavailable"
            if "went away" in str(error) or "Socket" in str(error):
                seen.problems.append(f"{kind}: {error}")
        except (GenerationError, TimeoutError, grpc.RpcError) as error:
            end = "failed"
            seen.problems.append(f"{kind}: {type(error).__name__}: {error}")
        seen.ends[end] += 1
        seen.ended_at.append((time.perf_counter() - self._began, end))
        return end

    async def _timed(self, where: str, request: Coroutine[Any, Any, str]) -> str:
        began = time.perf_counter()
        end = await request
        if end == "answered":
            self.seen.took_s[where].append(time.perf_counter() - began)
        return end

    def _refusal(self, message: str) -> None:
        # Ours say what is allowed; tritonserver's do not.
        self.seen.by_model += "cannot be used; allowed: " in message

    async def _answered(self, client: Client, known: Known, name: str, style: dict[str, Any]) -> str:
        tokens: tuple[int, ...] = ()
        text, reason = "", None
        async with aclosing(client.generate(**{**known.inputs, **style, "client": name})) as responses:
            async for response in responses:
                if reason is not None:
                    self.seen.problems.append("a response after the last one")
                if not response.provisional:
                    tokens += response.token_ids
                    self.seen.tokens += len(response.token_ids)
                    text += response.text
                    reason = response.finish_reason
        assert reason is not None, "the client raises for a stream without an end"
        if tokens != known.tokens:
            self.seen.problems.append(f"other tokens than those of {known.text!r}")
        return self._compared(known, style, text, reason)

    def _compared(self, known: Known, style: dict[str, Any], text: str, reason: str) -> str:
        self.seen.reasons[reason] += 1
        if (text, reason) != (known.text, known.reason):
            asked = {**known.inputs, **style}
            self.seen.problems.append(f"another answer to {str(asked)[:200]}: {text!r}, {reason}; not {known.text!r}")
        return "answered"

    async def _through_gateway(self, url: str, known: Known, name: str) -> str:
        body: dict[str, Any] = {"model": MODEL, **known.inputs, "user": name}
        if "input_ids" in body:
            body["prompt"] = body.pop("input_ids")
        path = "chat/completions" if "messages" in body else "completions"
        try:
            answer = await self._http.post(f"{url}/{path}", json=body)
        except httpx.HTTPError as error:
            self.seen.problems.append(f"OpenAI: {type(error).__name__}: {error}")
            return "failed"
        if answer.status_code == 503:
            return "unavailable"
        if answer.status_code != 200:
            self.seen.problems.append(f"OpenAI: status {answer.status_code}: {answer.text[:200]}")
            return "failed"
        found = answer.json()
        choice = found["choices"][0]
        self.seen.tokens += found["usage"]["completion_tokens"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        return self._compared(known, {"openai": path}, text, choice["finish_reason"])

    async def _cancelled(self, client: Client, draw: random.Random, name: str) -> str:
        """Go away at a random moment, from before the first response to after the last."""
        task = asyncio.create_task(self._answered(client, draw.choice(self._long), name, {"drafts": True}))
        done, _ = await asyncio.wait((task,), timeout=draw.choice((0.0, draw.uniform(0, 0.2), draw.uniform(0, 3))))
        if not done:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            return "cancelled"

    async def _must_refuse(self, client: Client, asked: dict[str, Any], name: str) -> str:
        async with aclosing(client.generate(client=name, **asked)) as responses:
            async for _ in responses:
                pass
        self.seen.problems.append(f"answered: {str(asked)[:200]}")
        return "answered"

    async def _malformed(self, stub: Any, draw: random.Random) -> str:
        kind = draw.choice(list(MALFORMED))
        # Without triton_grpc_error: asked for statuses, tritonserver 2.51 ends now and then with a segmentation fault.
        call = stub.ModelStreamInfer(iter([MALFORMED[kind]()]))
        try:
            messages = [message async for message in call]
        except grpc.RpcError as error:
            raise explained(error) from error
        finally:
            call.cancel()
        if not messages or not messages[0].error_message:
            ended = "answered" if messages else "failed"
            self.seen.problems.append(f"{ended}, not refused: {kind}")
            return ended
        refusal = unqualified(messages[0].error_message)
        if isinstance(refusal, Unavailable):
            raise refusal
        # tritonserver says what it refuses itself without a status.
        self._refusal(messages[0].error_message)
        return "refused"
