"""The log's line for each request: what it took, and nothing of what was asked or answered."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from triton_repo.client.blocking import BlockingClient
from triton_repo.client.failures import GenerationError
from triton_repo.launcher.server import Server

pytestmark = pytest.mark.server
Records = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def records(server: Server) -> Records:
    """Wait for the records whose request id starts with some text."""

    def wait(start: str) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            # as a log collector does: lines that are JSON are ours, the others tritonserver's
            lines = [line for line in server.log_path.read_text().splitlines() if line.startswith("{")]
            found = [record for record in map(json.loads, lines) if record["request_id"].startswith(start)]
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError(start)

    return wait


def test_an_answer_is_one_line(client: BlockingClient, records: Records) -> None:
    before = datetime.now(UTC)
    responses = list(
        client.generate("red chair", max_tokens=20, ignore_eos=True, max_denoising_steps=3, request_id="answered")
    )
    (record,) = records("answered")
    queue, first, total = record.pop("queue_ms"), record.pop("first_block_ms"), record.pop("total_ms")
    assert 0 <= queue <= first <= total < 60_000
    assert before.timestamp() - 1 <= datetime.fromisoformat(record.pop("time")).timestamp() <= time.time()
    assert record == {
        "event": "request",
        "request_id": "answered",
        "outcome": "length",
        "input_tokens": responses[-1].num_input_tokens,
        "reused_tokens": 0,
        "output_tokens": 20,
        "canvases": 2,
        "denoising_steps": sum(r.denoising_steps for r in responses),
        "trace_id": None,
    }


def test_a_refusal_says_nothing_of_what_was_sent(client: BlockingClient, server: Server, records: Records) -> None:
    with pytest.raises(GenerationError, match="marigold"):
        list(client.generate(messages=[{"role": "marigold", "content": "periwinkle"}], request_id="refused-1"))
    (record,) = records("refused-1")
    assert record["outcome"] == "refused"
    assert record["input_tokens"] is record["queue_ms"] is record["first_block_ms"] is None
    list(client.generate("periwinkle", max_tokens=2, ignore_eos=True, request_id="answered-2"))
    assert records("answered-2")
    text = server.log_path.read_text()
    assert "marigold" not in text
    assert "periwinkle" not in text


def test_a_request_id_cannot_forge_a_line(client: BlockingClient, records: Records) -> None:
    forged = 'forged", "outcome": "stop"}\n{"request_id": "forged-second"}\r\x1b[31m\u2028'
    list(client.generate("red", max_tokens=1, ignore_eos=True, request_id=forged))
    (record,) = records("forged")
    assert record["request_id"] == forged
    assert record["outcome"] == "length"


def test_a_long_request_id_is_cut(client: BlockingClient, records: Records) -> None:
    list(client.generate("red", max_tokens=1, ignore_eos=True, request_id="long" * 1000))
    (record,) = records("longlong")
    assert record["request_id"] == "long" * 64
