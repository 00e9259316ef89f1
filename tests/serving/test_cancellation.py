"""A client that goes away frees its slot at the next denoising step."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cases.triton.target import Target
from tests.serving.endless import ENDLESS, endless_call
from triton_repo.client.blocking import BlockingClient
from triton_repo.launcher.server import Server
from triton_repo.tensors import UNARY_MODEL
from trtllm_build import Engine

pytestmark = pytest.mark.server


def test_cancelled_generations_free_every_slot(
    client: BlockingClient, engine: Engine, logged: Callable[[str], bool]
) -> None:
    """One more than there are slots: the one that waits is cancelled too."""
    names = [f"endless-{i}" for i in range(engine.limits.slots + 1)]
    streams = [client.generate("red", request_id=name, **ENDLESS) for name in names]
    started = [next(stream) for stream in streams[:-1]]
    assert all(response.provisional for response in started)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(lambda: list(client.generate("blue", max_tokens=4, ignore_eos=True)))
        for stream in streams:
            stream.close()
        assert waiting.result(timeout=60)[-1].finish_reason == "length"
    for name in names[:-1]:
        assert logged(f'"request_id": "{name}", "outcome": "cancelled"')


def test_closing_the_connection_cancels(server: Server, logged: Callable[[str], bool]) -> None:
    client = BlockingClient(server.grpc_url)
    next(client.generate("red", request_id="hung-up", **ENDLESS))
    client.close()
    assert logged('"request_id": "hung-up", "outcome": "cancelled"')


def test_calls_whose_clients_have_gone_hold_up_nobody(server: Server) -> None:
    """More of the longest kind than tritonserver's python backend has threads, which a cancellation needs, too."""
    target = Target(server)
    calls = [target.stub.ModelInfer.future(endless_call()) for _ in range(300)]
    time.sleep(0.5)  # for most of them to be there: tritonserver itself drops who goes before
    for call in calls:
        call.cancel()
    # in tens of minutes, were they run
    assert target.ask(target.request(UNARY_MODEL)) == "OK"
    target.close()


def test_control_c_cancels_on_the_server(server: Server, logged: Callable[[str], bool]) -> None:
    options = ["--json", "--ignore-eos", "--max-tokens=200", "--max-denoising-steps=1024"]
    command = [sys.executable, "-m", "triton_repo.cli", "--url", server.grpc_url, "red chair", *options]

    def from_a_terminal() -> None:  # a shell's background job, as a test run may be, ignores Ctrl-C, and so would this
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=from_a_terminal
    ) as process:
        assert process.stdout is not None
        assert '"provisional": true' in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "cancelled: the server was told to stop this generation\n"
    assert logged(f'"request_id": "diffgemma-{process.pid}", "outcome": "cancelled"')
