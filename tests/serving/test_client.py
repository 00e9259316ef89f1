"""The asynchronous client: what ends a generation, typed errors, tries, TLS."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from nemo_diffgemma.errors import FieldError
from tests.serving.endless import ENDLESS
from tests.serving.peer import Peer, serving
from triton_repo.client.blocking import BlockingClient
from triton_repo.client.client import (
    Cancelled,
    Client,
    GenerationError,
    Refused,
    Response,
    Retry,
    TimedOut,
    Tls,
    Unavailable,
    Unreachable,
)
from triton_repo.client.failures import unqualified
from triton_repo.launcher.scrape import running_requests
from triton_repo.launcher.server import Server

QUICK = Retry(first_s=0.001)
ONCE = Retry(attempts=1)


async def collect(client: Client, **inputs: Any) -> list[Response]:
    return [response async for response in client.generate("red", **inputs)]


@pytest.mark.server
def test_it_answers_as_the_blocking_client_does(server: Server, client: BlockingClient) -> None:
    async def several() -> list[list[Response]]:
        async with Client(server.grpc_url) as asynchronous:
            jobs = [collect(asynchronous, seed=seed, max_tokens=24, ignore_eos=True) for seed in range(6)]
            return await asyncio.gather(*jobs)

    expected = [list(client.generate("red", seed=seed, max_tokens=24, ignore_eos=True)) for seed in range(6)]
    assert asyncio.run(several()) == expected
    assert len({tuple(r.token_ids for r in answer) for answer in expected}) == 6


@pytest.mark.server
def test_whatever_ends_the_iteration_cancels_on_the_server(server: Server, logged: Callable[[str], bool]) -> None:
    async def run() -> None:
        async with Client(server.grpc_url) as client:
            async for _ in client.generate("red", request_id="left the loop", **ENDLESS):
                break
            async with aclosing(client.generate("red", request_id="closed", **ENDLESS)) as held:
                await anext(held)
            task = asyncio.create_task(collect(client, request_id="task cancelled", **ENDLESS))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            under_way = client.generate("red", request_id="client closed", **ENDLESS)
            await anext(under_way)
        with pytest.raises(Cancelled, match="the connection was closed"):
            async for _ in under_way:
                pass

    asyncio.run(run())
    for name in ("left the loop", "closed", "task cancelled", "client closed"):
        assert logged(f'"request_id": "{name}", "outcome": "cancelled"')


@pytest.mark.server
def test_what_went_wrong_is_told_apart(server: Server) -> None:
    async def run() -> None:
        async with Client(server.grpc_url) as client:
            with pytest.raises(Refused, match="^max_tokens: 0 cannot be used; allowed: an integer >= 1"):
                await collect(client, max_tokens=0)
            with pytest.raises(Refused, match="^Request for unknown model: 'other' is not found$"):
                await collect(client, model="other")
            with pytest.raises(TimedOut):
                await collect(client, timeout=0.1, **ENDLESS)
            assert await client.is_ready()
            assert not await client.is_ready(model="other")
            assert (await client.server_metadata()).name == "triton"
        async with Client("127.0.0.1:1", retry=QUICK) as nowhere:
            with pytest.raises(Unreachable):
                await collect(nowhere)
            with pytest.raises(Unreachable):
                await nowhere.server_metadata()
            assert not await nowhere.is_ready()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("messages[0].role: 'the server is shutting down' cannot be used; allowed: user; fix: it", Refused),
        ("stop_words: 'a\nServer exiting' cannot be used; allowed: text; fix: it", Refused),
        ("Request for unknown model: 'x' is not found", Refused),
        ("Request for unknown model: 'x' has no available versions", Unavailable),
        ("1 requests wait already; the limit is 1", Unavailable),
        ("the queue is full: 256 prompts of 9 characters wait to be read; try again later", Unavailable),
        ("the server is shutting down", Unavailable),
        ("RuntimeError: out of memory", GenerationError),
    ],
)
def test_an_error_without_status_is_told_by_its_text(text: str, kind: type[GenerationError]) -> None:
    assert type(unqualified(text)) is kind


@pytest.mark.server
def test_cancellations_that_meet_errors_leave_the_server_alive(server: Server) -> None:
    async def meet(client: Client, after: float) -> None:
        task = asyncio.create_task(collect(client, max_tokens=0))
        await asyncio.sleep(after)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def run() -> None:
        async with Client(server.grpc_url, retry=ONCE) as client:
            for i in range(60):
                await asyncio.gather(*(meet(client, 0.0003 * i * j / 8) for j in range(8)))
            assert (await collect(client, max_tokens=1, ignore_eos=True))[-1].finish_reason == "length"

    asyncio.run(run())
    server.check()


@pytest.mark.server
@pytest.mark.slow
def test_a_full_queue_is_asked_again(narrow_server: Server) -> None:
    async def run() -> None:
        async with Client(narrow_server.grpc_url, retry=Retry(attempts=100)) as client:
            running = client.generate("red", **ENDLESS)
            await anext(running)
            waiting = asyncio.create_task(collect(client, max_tokens=2))
            while await asyncio.to_thread(running_requests, narrow_server.metrics_url) < 2:
                await asyncio.sleep(0.05)
            async with Client(narrow_server.grpc_url, retry=ONCE) as impatient:
                with pytest.raises(Unavailable, match="^1 requests wait already; the limit is 1$"):
                    await collect(impatient, max_tokens=2)
            refused = asyncio.create_task(collect(client, max_tokens=2))
            await asyncio.sleep(0.3)
            assert not refused.done()
            await running.aclose()
            assert (await refused)[-1].finish_reason == (await waiting)[-1].finish_reason

    asyncio.run(run())


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.INVALID_ARGUMENT, Refused),
        (grpc.StatusCode.INTERNAL, GenerationError),
        (grpc.StatusCode.CANCELLED, Cancelled),
    ],
)
def test_only_unavailable_is_asked_again(code: grpc.StatusCode, kind: type[GenerationError]) -> None:
    async def run() -> None:
        peer = Peer(code, failures=3)
        async with serving(peer) as url, Client(url, retry=QUICK) as client:
            again = code == grpc.StatusCode.UNAVAILABLE
            if again:
                assert (await collect(client))[-1].finish_reason == "length"
            else:
                with pytest.raises(kind, match="on purpose") as error:
                    await collect(client)
                assert type(error.value) is kind
            assert len(peer.ids) == (4 if again else 1)

    asyncio.run(run())


def test_tries_are_bounded_in_number_and_time() -> None:
    async def tried(retry: Retry) -> int:
        peer = Peer(failures=1000)
        async with serving(peer) as url, Client(url, retry=retry) as client:
            with pytest.raises(Unavailable, match="^on purpose$"):
                await collect(client)
            with pytest.raises(Unavailable, match="^on purpose$"):
                await client.server_metadata()
        assert len(peer.metadata) == 2 * len(peer.ids)
        return len(peer.ids)

    assert asyncio.run(tried(ONCE)) == 1
    assert asyncio.run(tried(Retry(attempts=4, first_s=0.001))) == 4
    assert asyncio.run(tried(Retry(attempts=1000, first_s=0.001, most_s=0.001, total_s=0))) == 1
    with pytest.raises(FieldError, match="attempts: 0 cannot be used"):
        Retry(attempts=0)


def test_nothing_is_asked_again_after_its_first_response() -> None:
    async def run() -> None:
        peer = Peer(failures=1, responses=2)
        async with serving(peer) as url, Client(url, retry=QUICK) as client:
            stream = client.generate("red")
            arrived = [await anext(stream), await anext(stream)]
            with pytest.raises(Unavailable, match=f"^the server at {url} went away: on purpose$"):
                await anext(stream)
            assert (len(arrived), len(peer.ids)) == (2, 1)

    asyncio.run(run())


def test_a_request_has_an_id_and_no_metadata_that_is_dangerous() -> None:
    async def run() -> None:
        peer = Peer(failures=1)
        async with serving(peer) as url, Client(url, retry=QUICK) as client:
            await collect(client)
            await collect(client)
            await collect(client, request_id="mine")
        first, again, second, mine = peer.ids
        assert first == again != second
        assert len(first) == 32
        assert mine == "mine"
        # With it a cancellation at the wrong moment ends tritonserver 2.51.
        assert all("triton_grpc_error" not in sent for sent in peer.metadata)

    asyncio.run(run())


def test_a_stream_with_its_last_message_comes_to_its_end() -> None:
    """tritonserver 2.51 keeps memory of one that is cut off there."""

    async def run() -> None:
        peer = Peer(lingers_s=0.05)
        async with serving(peer) as url, Client(url) as client:
            async with aclosing(client.generate("red")) as responses:
                assert (await anext(responses)).finish_reason == "length"
            assert peer.whole == 1
            peer.refusal = "[request id: a] no"
            with pytest.raises(GenerationError):
                await collect(client)
            assert peer.whole == 2
            peer.lingers_s = 60.0
            with pytest.raises(GenerationError):  # it does not wait for ever
                await collect(client)
            assert peer.whole == 2

    asyncio.run(run())


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(certificates: tuple[trustme.CA, Path], mutual: bool) -> None:
    authority, folder = certificates
    issued = authority.issue_cert("localhost")
    pair = (issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())
    creds = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes() if mutual else None, mutual)
    anonymous = Tls(folder / "ca.pem")
    known = Tls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")

    async def run() -> None:
        async with serving(Peer(), creds) as url:
            async with Client(url, tls=known) as client:
                assert (await collect(client))[-1].finish_reason == "length"
            async with Client(url, tls=anonymous, retry=ONCE) as client:
                if mutual:
                    with pytest.raises(Unreachable, match="speaks TLS and trusts this client"):
                        await collect(client)
                else:
                    assert (await collect(client))[-1].finish_reason == "length"
            async with Client(url, retry=ONCE) as plain:
                with pytest.raises(Unavailable):
                    await collect(plain)

    asyncio.run(run())


def test_tls_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(FieldError, match=r"tls_ca: .*none.pem' cannot be used; allowed: a file in PEM \(No such file"):
        Client(tls=Tls(tmp_path / "none.pem"))
    with pytest.raises(FieldError, match="tls_key: None cannot be used; .*; fix: pass tls_key too"):
        Tls(tmp_path / "none.pem", cert=tmp_path / "cert.pem")


@pytest.mark.server
def test_threads_share_a_blocking_client(server: Server) -> None:
    client = BlockingClient(server.grpc_url)
    ended: list[Exception] = []

    def endless() -> None:
        try:
            list(client.generate("red", **ENDLESS))
        except Exception as error:
            ended.append(error)

    threads = [threading.Thread(target=endless) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert list(client.generate("red", max_tokens=3, ignore_eos=True))[-1].finish_reason == "length"
    client.close()
    for thread in threads:
        thread.join(timeout=60)
    assert [type(error) for error in ended] == [Cancelled] * 3
