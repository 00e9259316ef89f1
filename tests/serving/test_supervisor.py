"""Death, standstill, shutdown: what a cluster and its users see of diffgemma-serve."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2_grpc

from tests.cases.triton.target import GRPC_ERROR, Target
from tests.serving.endless import ENDLESS
from tests.serving.test_gateway_process import ENDLESS as ENDLESS_COMPLETION
from tests.serving.test_gateway_process import TEXT
from tests.serving.test_launcher import children, engines, launched, shared_memory, wait_until
from triton_repo.client.blocking import BlockingClient
from triton_repo.client.client import GenerationError, Retry, Unavailable
from triton_repo.launcher.scrape import running_requests
from trtllm_build.hardware import beside_the_engine

pytestmark = [pytest.mark.server, pytest.mark.slow]

ONCE = Retry(attempts=1)


def health(lines: list[str], what: str = "ready") -> tuple[int, dict[str, Any]]:
    """Status and body of the health endpoint that the launcher printed."""
    (line,) = [line for line in lines if line.startswith("health: ")]
    address = line.removeprefix("health: ").partition(";")[0].replace("ready", what)
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def grpc_url(lines: list[str]) -> str:
    return lines[-1].split()[3]


def stubs(pid: int) -> tuple[int, list[int]]:
    """tritonserver, and the models' processes, that of the engine, which has most memory, first."""
    (tritonserver,) = (c for c in children(pid) if "tritonserver" in Path(f"/proc/{c}/cmdline").read_text())

    def memory(child: int) -> int:
        return int(Path(f"/proc/{child}/statm").read_text().split()[1])

    return tritonserver, sorted(children(tritonserver), key=memory, reverse=True)


@pytest.mark.parametrize("victim", ["stub", "engine", "reader"])
def test_a_model_process_killed_in_the_middle_of_a_stream(demo_bundle: Path, victim: str) -> None:
    with launched(demo_bundle) as (process, lines), BlockingClient(grpc_url(lines), retry=ONCE) as client:
        assert health(lines) == (200, {"live": True, "ready": True, "reason": "serving"})
        stream = client.generate(input_ids=[3], **ENDLESS)
        next(stream)
        tritonserver, (stub, *_) = stubs(process.pid)
        (engine,) = engines(process.pid)
        (reader,) = (child for child in children(stub) if child != engine)
        os.kill({"engine": engine, "stub": stub, "reader": reader}[victim], signal.SIGKILL)
        if victim == "reader":  # which is missed when there is something to read
            with pytest.raises(GenerationError):
                list(client.generate("red", max_tokens=3))
        with pytest.raises(GenerationError):  # told, not left waiting
            list(stream)
        wait_until(lambda: health(lines)[0] == 503)
        assert health(lines, "live")[0] == 200
        assert health(lines)[1]["reason"].startswith("starting again: the model's process died")
        wait_until(lambda: health(lines)[0] == 200)
        assert stubs(process.pid)[0] != tritonserver
        assert not Path(f"/proc/{engine}").exists()
        assert list(client.generate("red", max_tokens=3, ignore_eos=True))[-1].finish_reason == "length"


def test_requests_that_end_tritonserver_are_survived(demo_bundle: Path) -> None:
    """The two that docs/serving.md names: no code of ours sees them; what they end is started again."""
    overflow = Target.request(stop_token_ids=("INT32", [1, 2**62], b""))
    cut = Target.request(text_input=("BYTES", [1, 1], b"\xff\0\0\0red"))
    with launched(demo_bundle) as (_, lines), grpc.insecure_channel(grpc_url(lines)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for request, metadata in ((overflow, ()), (cut, GRPC_ERROR)):
            for _ in range(200):
                with suppress(grpc.RpcError):
                    list(stub.ModelStreamInfer(iter([request]), timeout=10, metadata=metadata))
                if health(lines)[0] == 503:
                    break
            wait_until(lambda: health(lines)[0] == 200)
            with BlockingClient(grpc_url(lines), retry=ONCE) as client:
                assert list(client.generate("red", max_tokens=3, ignore_eos=True))[-1].finish_reason == "length"


def test_a_gateway_killed_in_the_middle_of_a_stream(demo_bundle: Path) -> None:
    with launched(demo_bundle, "--openai-port=0") as (process, lines):
        (api,) = (line.removeprefix("OpenAI's API: ") for line in lines if line.startswith("OpenAI"))
        (serving,) = (line for line in lines if line.startswith("serving on "))
        tritonserver, _ = stubs(process.pid)

        def kill() -> None:
            (gateway,) = set(children(process.pid)) - {tritonserver}
            assert os.sched_getaffinity(gateway) == beside_the_engine()
            os.kill(gateway, signal.SIGKILL)

        def answers() -> bool:
            try:
                done = httpx.post(f"{api}/completions", json=TEXT, timeout=60)
            except httpx.TransportError:
                return False
            return done.status_code == 200

        with httpx.stream("POST", f"{api}/completions", json=ENDLESS_COMPLETION, timeout=60) as answer:
            events = answer.iter_lines()
            next(events)
            kill()
            with pytest.raises(httpx.TransportError):  # told, not left waiting
                list(events)
        wait_until(lambda: running_requests(serving.split()[-1]) == 0)  # the engine works for nobody
        wait_until(answers)
        assert (health(lines)[0], stubs(process.pid)[0]) == (200, tritonserver)
        for _ in range(3):
            wait_until(answers)
            kill()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == "error: it failed 4 times in 600 s: the gateway died\n"


def test_a_gateway_that_stands_still_is_started_again(demo_bundle: Path) -> None:
    with launched(demo_bundle, "--openai-port=0", "--stall-timeout=24") as (process, lines):
        (api,) = (line.removeprefix("OpenAI's API: ") for line in lines if line.startswith("OpenAI"))
        tritonserver, _ = stubs(process.pid)
        (gateway,) = set(children(process.pid)) - {tritonserver}
        assert health(lines)[0] == 200
        os.kill(gateway, signal.SIGSTOP)
        wait_until(lambda: health(lines)[0] == 503)
        assert health(lines)[1]["reason"].startswith("the gateway takes no connection, or does not answer, for ")
        assert health(lines, "live")[0] == 200
        wait_until(lambda: not Path(f"/proc/{gateway}").exists())  # SIGTERM alone would wait until it goes on
        wait_until(lambda: health(lines)[0] == 200)
        assert httpx.post(f"{api}/completions", json=TEXT, timeout=60).status_code == 200
        assert stubs(process.pid)[0] == tritonserver


def test_an_engine_that_stands_still_is_started_again(demo_bundle: Path) -> None:
    with launched(demo_bundle, "--stall-timeout=15") as (process, lines):
        tritonserver, _ = stubs(process.pid)
        (engine,) = engines(process.pid)
        os.kill(engine, signal.SIGSTOP)
        wait_until(lambda: health(lines)[0] == 503)
        assert "no sign of life for" in health(lines)[1]["reason"]
        wait_until(lambda: "stands still" in health(lines)[1]["reason"])
        wait_until(lambda: health(lines)[0] == 200)
        assert stubs(process.pid)[0] != tritonserver
        assert not Path(f"/proc/{engine}").exists()


def test_it_ends_when_it_fails_again_and_again(demo_bundle: Path) -> None:
    with launched(demo_bundle) as (process, lines):
        for _ in range(4):
            wait_until(lambda: health(lines)[0] == 200)
            os.kill(stubs(process.pid)[1][0], signal.SIGKILL)
            wait_until(lambda: process.poll() is not None or health(lines)[0] == 503)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("error: it failed 4 times in 600 s: the model's process died")
    assert not shared_memory(process.pid)


def test_sigterm_lets_what_runs_finish_and_refuses_what_comes(demo_bundle: Path) -> None:
    launch = launched(demo_bundle, "--drain-timeout=120")
    with launch as (process, lines), BlockingClient(grpc_url(lines), retry=ONCE) as client:
        # 40 canvases of 48 steps: ten seconds, and more on a busy machine
        running = client.generate(input_ids=[3], max_tokens=40, canvas_length=1, confidence_threshold=0.0)
        next(running)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: health(lines)[0] == 503)
        assert health(lines)[1] == {"live": True, "ready": False, "reason": "shutting down"}
        with pytest.raises(Unavailable, match="the server is shutting down"):
            list(client.generate("red", max_tokens=1))
        assert list(running)[-1].num_output_tokens in range(1, 41)
        out, errors = process.communicate(timeout=150)
    assert (process.returncode, errors) == (0, "")
    assert out.endswith("shutting down: what runs may finish\nstopped\n")


def test_sigterm_is_over_within_its_budget_whatever_clients_do(demo_bundle: Path) -> None:
    with launched(demo_bundle, "--drain-timeout=2") as (process, lines), BlockingClient(grpc_url(lines)) as client:
        running = client.generate(input_ids=[3], **ENDLESS)
        next(running)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        with pytest.raises(GenerationError):
            list(running)
    assert process.returncode == 0
    assert "requests still run after 2 s; they are cut off" in out
    assert not shared_memory(process.pid)
