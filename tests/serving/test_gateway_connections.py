"""Connections that never finish: others are answered meanwhile, each is ended in time, and the log stays short."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from nemo_diffgemma.errors import FieldError
from tests.serving.gateway import Running, request, running
from triton_repo.gateway.connections import BODY, HEADERS, Connections, Phase
from triton_repo.gateway.logs import Sparing

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"


def connected(gateway: Running) -> socket.socket:
    url = httpx.URL(gateway.url)
    return socket.create_connection((url.host, url.port), timeout=60)


def resident(gateway: Running) -> int:
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_more_connections_than_files(tmp_path: Path) -> None:
    with running("127.0.0.1:1", tmp_path / "log", files=512) as gateway, ExitStack() as held:
        assert request(f"{gateway.url}/v1/models")[0] == 200
        for said in (b"", HEAD, HEAD + b"content-length: 9\r\n\r\n{"):
            for _ in range(600):
                one = held.enter_context(connected(gateway))
                one.send(said)
            for _ in range(5):
                assert request(f"{gateway.url}/v1/models")[0] == 200
            assert len(os.listdir(f"/proc/{gateway.process.pid}/fd")) < 512
        lines = [json.loads(line) for line in gateway.log.read_text().splitlines()]
        warned = [line for line in lines if line["level"] != "info"]
        assert {line["event"][:32] for line in warned} == {"no room for another connection: "}
        assert len(warned) < 20
        held.close()
        time.sleep(1.5)
        assert len(os.listdir(f"/proc/{gateway.process.pid}/fd")) < 20


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running("127.0.0.1:1", tmp_path_factory.mktemp("patient") / "log", "--keep-alive=2") as found:
        yield found


def trickled(said: bytes, rest: bytes, gateway: Running, within_s: float) -> bytes:
    """What comes back when ``rest`` is sent byte by byte after ``said``, until the other end closes."""
    with connected(gateway) as one:
        one.sendall(said)
        end = time.monotonic() + within_s
        for i in range(10**6):
            one.settimeout(0.25)
            try:
                found = one.recv(4096)
            except TimeoutError:
                assert time.monotonic() < end, "it is still waited for"
                one.send(rest[i % len(rest) :][:1])
                continue
            except ConnectionResetError:
                return b""
            return found
    raise AssertionError


def after_a_refusal(gateway: Running) -> bytes:
    """What ends a client that goes on sending a body that was refused."""
    with connected(gateway) as one:
        one.sendall(HEAD + b"content-length: 999999999999\r\n\r\n")
        found = one.recv(4096)
        end = time.monotonic() + BODY.seconds + 20
        try:
            while time.monotonic() < end:
                one.sendall(b" ")
                time.sleep(0.25)
        except OSError:
            return found
    raise AssertionError("it is still waited for")


def nothing_said(gateway: Running) -> bytes:
    with connected(gateway) as one:
        one.settimeout(HEADERS.seconds + 20)
        return one.recv(1)


@pytest.mark.slow
def test_requests_that_never_end(patient: Running) -> None:
    sized = HEAD + b"content-length: 100000\r\n\r\n"
    with ThreadPoolExecutor() as pool:
        headers = pool.submit(trickled, HEAD, b"a: b\r\n", patient, HEADERS.seconds + 20)
        body = pool.submit(trickled, sized, b" ", patient, BODY.seconds + 20)
        refused, silent = pool.submit(after_a_refusal, patient), pool.submit(nothing_said, patient)
        assert headers.result().startswith(b"HTTP/1.1 408 ")
        assert b'"code": "request_timeout"' in headers.result()
        assert body.result().startswith(b"HTTP/1.1 408 ")
        assert refused.result().startswith(b"HTTP/1.1 413 ")
        assert silent.result() == b""


def test_three_million_chunks_of_one_byte(patient: Running) -> None:
    before = resident(patient)
    with connected(patient) as one:
        one.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        part = b"1\r\na\r\n" * 10_000
        try:
            for _ in range(300):
                one.sendall(part)
            found = one.recv(4096)
        except OSError:
            found = b""  # closed, with the rest unread
        assert found[:12] in (b"", b"HTTP/1.1 413")
        assert request(f"{patient.url}/v1/models")[0] == 200
    assert resident(patient) < 1.05 * before


def test_chunks_of_a_usual_size_are_read(patient: Running) -> None:
    def parts() -> Iterator[bytes]:
        yield b'{"model": "diffgemma", "max_tokens": 1, "prompt": "'
        for _ in range(4000):
            yield b"a" * 300
        yield b'"}'

    answer = httpx.post(f"{patient.url}/v1/completions", content=parts(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "the model server does not answer")


# Who waits longest gives way.


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def connections(clock: Clock) -> Connections:
    found = Connections(512, clock)
    found.most = 3
    return found


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    found = [socket.socketpair() for _ in range(5)]
    yield found
    for pair in found:
        for one in pair:
            one.close()


def is_open(pair: tuple[socket.socket, socket.socket]) -> bool:
    pair[1].setblocking(False)
    try:
        return pair[1].recv(1) != b""
    except BlockingIOError:
        return True


def test_who_gives_way(connections: Connections, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    cut: list[int] = []
    for i, (ours, _) in enumerate(pairs[:3]):
        assert connections.accept(ours)
        connections._turns[ours.fileno()].cut = lambda i=i: cut.append(i)  # type: ignore[misc]
    first, second, third = (connections._turns[ours.fileno()] for ours, _ in pairs[:3])
    connections.wait(first, BODY)  # half a request
    connections.wait(second, None)  # being answered
    connections.wait(third, Phase(9.0))  # idle
    assert connections.accept(pairs[3][0])
    assert cut == [2]  # without a request, though it began to wait last
    assert connections.accept(pairs[4][0])
    assert not is_open(pairs[3])  # the one before, of which there was nothing yet
    fifth = connections._turns[pairs[4][0].fileno()]
    for turn in (first, fifth):
        connections.wait(turn, None)
    with ExitStack() as held:
        ours, theirs = socket.socketpair()
        held.enter_context(theirs)
        assert not connections.accept(ours)
        assert ours.fileno() == -1


def test_what_is_late_is_ended_and_what_does_not_end_is_cut(
    connections: Connections, clock: Clock, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    said: list[str] = []
    ours = pairs[0][0]
    assert connections.accept(ours)
    turn = connections._turns[ours.fileno()]
    turn.late, turn.cut = lambda: said.append("late"), lambda: said.append("cut")
    connections.wait(turn, BODY)
    turn.received = 10 * BODY.bytes_per_s
    for now, expected in ((20.0, []), (29.9, []), (30.1, ["late"]), (31.0, ["late"]), (41.0, ["late", "cut"])):
        clock.now = now
        connections.sweep()
        assert said == expected


def test_too_few_files() -> None:
    with pytest.raises(
        FieldError, match=r"ulimit -n: 200 cannot be used; allowed: at least 320 open files; fix: ulimi"
    ):
        Connections(200)


def test_a_kind_of_warning_is_written_once_per_interval(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    sparing = Sparing(clock)
    caplog.handler.addFilter(sparing)
    log = logging.getLogger("sparing")
    try:
        for now in (0.0, 1.0, 2.0, 11.0, 12.0, 25.0):
            clock.now = now
            for _ in range(3):
                log.warning("flood")
            log.error("other")
        clock.now = 36.0
        sparing.tell()
    finally:
        caplog.handler.removeFilter(sparing)
    seen = [(r.getMessage(), getattr(r, "repeated", 0)) for r in caplog.records]
    assert [count for event, count in seen if event == "flood"] == [0, 8, 5, 2]
    assert [count for event, count in seen if event == "other"] == [0, 2, 1]
