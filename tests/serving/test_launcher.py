"""diffgemma-serve and diffgemma, as a user runs them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cases.triton.target import Target
from tests.serving.endless import endless_call
from triton_repo.launcher.server import Server
from triton_repo.launcher.supervisor import Patience
from trtllm_build.hardware import available_cpus, beside_the_engine

PORTS = ["--grpc-port=0", "--http-port=0", "--metrics-port=0", "--health-port=0"]


@contextmanager
def launched(bundle: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The launcher once it serves, and the lines it has printed."""
    command = [sys.executable, "-m", "triton_repo.launcher.serve", "--engine", str(bundle), *PORTS, *options]
    command.append(f"--log-file={bundle.parent / 'tritonserver.log'}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while line := process.stdout.readline():
            lines.append(line.rstrip())
            if line.startswith("try: "):
                break
        try:
            yield process, lines
        finally:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=60)


def children(pid: int) -> list[int]:
    found = (path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for pids in found for child in pids]


def wait_until(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("stall_s", [3, 14, 15, 60, 3600])
def test_who_is_well_is_looked_at_before_anybody_doubts_it(stall_s: float) -> None:
    patience = Patience(doubt_s=stall_s / 3, stall_s=stall_s)
    # one look, and another that takes as long as the time between them
    assert patience.beat_s * 2 < patience.doubt_s
    assert patience.beat_s <= 5


def shared_memory(pid: int) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"diffgemma_{pid}_*")]


@pytest.mark.server
@pytest.mark.slow
def test_it_serves_until_told_to_stop_and_leaves_nothing(demo_bundle: Path) -> None:
    with launched(demo_bundle) as (process, lines):
        text = "\n".join(lines)
        for stage in ("checking the engine bundle", "loading the engine", "ready after", "serving on", "health: "):
            assert stage in text
        printed = shlex.split(lines[-1].removeprefix("try: "))
        assert printed[0] == "diffgemma"
        command = [sys.executable, "-m", "triton_repo.cli", *printed[1:], "--max-tokens=4", "--ignore-eos"]
        answer = subprocess.run(command, capture_output=True, check=True, timeout=60)
        assert answer.stdout.strip()
        (tritonserver,) = children(process.pid)
        stubs = children(tritonserver)
        assert len(stubs) == 4  # one per model
        (engine,) = engines(process.pid)
        threads = [int(path.name) for path in Path(f"/proc/{engine}/task").iterdir()]
        assert all(os.sched_getaffinity(thread) == available_cpus() for thread in threads)
        assert all(os.sched_getaffinity(pid) == beside_the_engine() for pid in (tritonserver, *stubs))
        assert shared_memory(process.pid)
        # what watches needs no torch, which takes a second and memory; the engine's process has it
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch" in Path(f"/proc/{engine}/maps").read_text()
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, "shutting down: what runs may finish\nstopped\n", "")
    # orphans are there until the system's first process has noticed their end
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (tritonserver, *stubs, engine)), 10)
    assert not shared_memory(process.pid)


def descendants(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *descendants(child))]


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_what_it_started_ends_with_it(demo_bundle: Path, number: signal.Signals) -> None:
    """Whatever it has to do: one that forwards calls would wait for all their answers."""
    with launched(demo_bundle, "--openai-port=0") as (process, lines), ExitStack() as stack:
        url = next(word for word in shlex.split(lines[-1]) if ":" in word and word != "try:")
        target = Target(SimpleNamespace(grpc_url=url.removeprefix("--url=")))
        stack.callback(target.close)
        # told to end, it would wait for these to finish
        calls = [target.stub.ModelInfer.future(endless_call()) for _ in range(100 * (number == signal.SIGKILL))]
        assert not any(call.done() for call in calls)
        below = descendants(process.pid)
        assert len(below) >= 8  # tritonserver, four models, the engine, what reads prompts, the gateway
        process.send_signal(number)
        process.wait(timeout=60)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), 30)


@pytest.mark.server
@pytest.mark.slow
def test_an_engine_that_loads_ends_with_it(demo_bundle: Path) -> None:
    """The engine is stopped, as if loading took for ever: nothing that it does itself can end it."""
    command = [sys.executable, "-m", "triton_repo.launcher.serve", "--engine", str(demo_bundle), *PORTS]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: bool(engines(process.pid)))
        (engine,) = engines(process.pid)
        os.kill(engine, signal.SIGSTOP)
        below = descendants(process.pid)
        process.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), 30)


def engines(pid: int) -> list[int]:
    """Engines below a process."""
    command = b"trtllm_build.runtime.process"
    return [found for found in descendants(pid) if command in Path(f"/proc/{found}/cmdline").read_bytes()]


@pytest.mark.server
def test_piped_output_is_the_committed_text_alone(server: Server) -> None:
    command = [sys.executable, "-m", "triton_repo.cli", "--url", server.grpc_url, "red", "--max-tokens=20"]
    text = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode()
    lines = subprocess.run([*command, "--json"], capture_output=True, check=True, timeout=60).stdout.decode()
    responses = [json.loads(line) for line in lines.splitlines()]
    assert any(response["provisional"] for response in responses)
    assert text == "".join(r["text"] for r in responses if not r["provisional"]) + "\n"
    assert responses[-1]["finish_reason"] in ("stop", "length")


@pytest.mark.server
def test_a_refusal_is_one_line_and_status_1(server: Server) -> None:
    command = [sys.executable, "-m", "triton_repo.cli", "--url", server.grpc_url, "red", "--max-tokens=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: max_tokens: 0 cannot be used; allowed: an integer >= 1; fix: pass max_tokens=1\n"


def test_a_missing_server_or_bundle_is_one_line_and_status_2() -> None:
    client = [sys.executable, "-m", "triton_repo.cli", "--url=127.0.0.1:1", "red"]
    server = [sys.executable, "-m", "triton_repo.launcher.serve", "--engine=/nowhere", *PORTS]
    for command, start in ((client, "error: url: '127.0.0.1:1' cannot"), (server, "error: engine: '/nowhere' cannot")):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert done.stderr.startswith(start)
        assert done.stderr.count("\n") == 1
