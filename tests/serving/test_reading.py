"""A checkpoint whose chat template does not come to an end, served: one request's trouble stays its own."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serving.test_readers import HOSTILE
from tests.support import quick_engine
from triton_repo.client.blocking import BlockingClient
from triton_repo.client.client import GenerationError
from triton_repo.client.wire import Response
from triton_repo.launcher.server import Server

pytestmark = [pytest.mark.server, pytest.mark.slow]

LOOP = [{"role": "user", "content": "loop"}]
GOOD = [{"role": "user", "content": "red chair"}]


@pytest.fixture(scope="module")
def server(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    checkpoint = shutil.copytree(text_checkpoint, folder / "checkpoint-with-template")
    config = checkpoint / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": HOSTILE}))
    (checkpoint / "chat_template.jinja").write_text(HOSTILE)
    with Server(quick_engine(checkpoint, folder), http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


def answers(client: BlockingClient) -> list[Response]:
    """To a conversation, a text and token ids."""
    asked = ({"messages": GOOD}, {"prompt": "red chair"}, {"input_ids": [5, 6]})
    return [r for given in asked for r in client.generate(**given, max_tokens=20, ignore_eos=True, seed=3)]


def test_others_are_answered_while_templates_run(server: Server) -> None:
    """Four do not end: two are being read, two wait for that, whose deadlines are over before."""

    def loop(name: str, deadline: float | None) -> str:
        with BlockingClient(server.grpc_url) as client:
            try:
                given = {} if deadline is None else {"deadline": deadline}
                last = list(client.generate(messages=LOOP, request_id=name, **given))[-1]
            except GenerationError as error:
                return str(error)
        assert (last.text, last.num_input_tokens, last.num_output_tokens) == ("", 0, 0)
        return str(last.finish_reason)

    with BlockingClient(server.grpc_url) as client, ThreadPoolExecutor(3) as pool:
        before = answers(client)
        loops = [pool.submit(loop, f"loop-{i}", None) for i in range(2)]
        time.sleep(0.5)
        waiting = pool.submit(loop, "late", 0.5)
        stream = client.generate(messages=LOOP, request_id="gone", stream=True, deadline=0.1)
        assert next(stream).finish_reason == "deadline"
        assert answers(client) == before
        assert waiting.result(timeout=60) == "deadline"
        assert answers(client) == before
        for refused in loops:
            said = (
                "messages: '37 characters' cannot be used; allowed: what the checkpoint's chat template renders in 5 s"
            )
            assert refused.result(timeout=60).startswith(said)
        assert answers(client) == before
    server.check()


def test_who_hangs_up_is_not_waited_for(server: Server) -> None:
    def hang_up(number: int) -> None:
        client = BlockingClient(server.grpc_url)
        stream = client.generate(messages=LOOP, request_id=f"gone-{number}")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(next, stream)
            time.sleep(0.3)
            client.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hang_up, range(4)))
    assert server.log_path is not None
    deadline = time.monotonic() + 60
    while not all(f'"gone-{i}", "outcome": "cancelled"' in server.log_path.read_text() for i in range(4)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with BlockingClient(server.grpc_url) as client:
        assert answers(client)
