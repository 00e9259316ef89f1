"""What `python -m benchmarks.salts` asks for, and that its test tells times apart and does not invent a difference."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.salts import COLD, OTHER, SAME, Timed, compared, measured
from tests.serving.test_gateway_cache import long_server
from triton_repo.launcher.server import Server


@pytest.fixture(scope="module")
def server(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with long_server(text_checkpoint, tmp_path_factory.mktemp("salts")) as running:
        yield running


@pytest.mark.server
@pytest.mark.slow
def test_only_the_same_salt_finds_a_beginning(server: Server) -> None:
    timed = asyncio.run(measured(server.grpc_url, repeats=4, seed=1))
    assert {kind: len(found.first_s) for kind, found in timed.items()} == {SAME: 4, OTHER: 4, COLD: 4}
    assert timed[SAME].cached == [700] * 4
    assert timed[OTHER].cached == timed[COLD].cached == [0] * 4


def test_what_the_test_tells() -> None:
    draw = random.Random(0)
    cold, other = (Timed([draw.gauss(0.020, 0.004) for _ in range(300)]) for _ in range(2))
    same = Timed([draw.gauss(0.012, 0.004) for _ in range(300)])
    leak = Timed([draw.gauss(0.0185, 0.004) for _ in range(300)])  # 1.5 ms less
    assert compared(other, cold)["p"] > 0.01
    for seen in (same, leak):
        found = compared(seen, cold)
        assert found["p"] < 0.01
        assert found["slower"] < 0.5
        assert found["ms"] < 0
