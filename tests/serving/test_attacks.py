"""What hostile clients send to Triton's own ports, each attack of `python -m tests.cases.triton`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cases.triton.attacks import ATTACKS, BIG
from tests.cases.triton.play import play
from tests.cases.triton.target import Target, text
from triton_repo.launcher.server import Server

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(demo_bundle: Path, same_threads: None) -> Iterator[Server]:
    """One of its own: should an attack end it, other tests have theirs."""
    with Server(demo_bundle, http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def target(server: Server) -> Iterator[Target]:
    opened = Target(server)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def honest(target: Target) -> bytes:
    return target.honest()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack(name: str, target: Target, server: Server, honest: bytes) -> None:
    assert play(ATTACKS[name], target, server, honest).wrong == ()


def test_the_log_is_lines_of_text(target: Target, server: Server, logged: Callable[[str], bool]) -> None:
    """What the attacks sent is in it escaped, or not at all."""
    assert ATTACKS["control characters in an id"].run(target) == "OK"
    assert logged(r'"request_id": "a\n\u001b[31m{}\r"')
    assert server.log_path is not None
    log = server.log_path.read_bytes()
    assert re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", log) is None


def test_twenty_large_prompts_leave_no_memory_behind(target: Target) -> None:
    """Of 15 MB, which the server accepts and cannot use, and of as much as its context could hold."""

    def ask(size: int) -> str:
        return target.ask(target.request(text_input=("BYTES", [1, 1], text(b"r " * (size // 2)))))

    def twenty() -> None:
        with ThreadPoolExecutor(2) as pool:
            told = [*pool.map(ask, [BIG] * 20), *pool.map(ask, [2048] * 20)]
        assert all("cannot be used" in said for said in told)

    twenty()
    before = target.memory()
    twenty()
    after = target.memory()
    assert set(before) == {"engine", "model"}
    assert all(after[name] <= 1.05 * before[name] for name in before), (before, after)
