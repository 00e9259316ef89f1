"""The engine in a process of its own behaves as the one in this process, and neither outlives the other."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_diffgemma.errors import FieldError
from trtllm_build import Engine, load_engine
from trtllm_build.runtime.process import EngineProcess
from trtllm_build.runtime.request import Block, Draft, Request
from trtllm_build.sampling import SamplerConfig

STEADY = SamplerConfig(max_denoising_steps=4)
ENDLESS = Request((3,), 200, sampler=SamplerConfig(max_denoising_steps=2**31 - 1), ignore_eos=True, draft_every=1)


@pytest.fixture(scope="module")
def local(demo_bundle: Path) -> Iterator[Engine]:
    engine = load_engine(demo_bundle)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def remote(demo_bundle: Path) -> Iterator[EngineProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
        engine = EngineProcess(demo_bundle, died=lambda: None)
    yield engine
    engine.close()


def events(engine: EngineProcess, request: Request) -> Iterator[Any]:
    inbox: queue.Queue[Any] = queue.Queue()
    engine.submit(request, inbox.put)
    while True:
        event = inbox.get(timeout=60)
        yield event
        if isinstance(event, Exception) or (isinstance(event, Block) and event.finish_reason):
            return


def test_it_gives_the_same_answers_at_the_same_time(local: Engine, remote: EngineProcess) -> None:
    assert (remote.limits, remote.sampler, remote.manifest) == (local.limits, local.sampler, local.manifest)
    requests = [Request((3, 4, 5), 40, seed, STEADY, ignore_eos=True) for seed in range(12)]
    expected = [g.token_ids for g in local.run(requests)]
    inbox: queue.Queue[Any] = queue.Queue()
    found: dict[int, tuple[int, ...]] = dict.fromkeys(range(12), ())

    def receiver(i: int) -> Callable[[Any], None]:
        return lambda event: inbox.put((i, event))

    for i, request in enumerate(requests):
        remote.submit(request, receiver(i))
    ended = 0
    while ended < 12:
        i, event = inbox.get(timeout=60)
        found[i] += event.token_ids
        ended += event.finish_reason is not None
    assert list(found.values()) == expected


def test_what_it_refuses_comes_as_it_was_raised(local: Engine, remote: EngineProcess) -> None:
    request = Request((3, 300), 4)
    with pytest.raises(FieldError) as error:
        local.submit(request, lambda event: None)
    (refusal,) = events(remote, request)
    assert isinstance(refusal, FieldError)
    assert (str(refusal), refusal.field, refusal.fix) == (str(error.value), error.value.field, error.value.fix)


def test_cancelling_frees_the_slot(remote: EngineProcess) -> None:
    inbox: queue.Queue[Any] = queue.Queue()
    tickets = [remote.submit(ENDLESS, inbox.put) for _ in range(remote.limits.slots + 1)]
    assert isinstance(inbox.get(timeout=60), Draft)
    wait_until(lambda: remote.progress().occupancy.running == remote.limits.slots)
    for ticket in tickets:
        ticket.cancel()
    reasons = []
    while len(reasons) < len(tickets):
        event = inbox.get(timeout=60)
        if isinstance(event, Block) and event.finish_reason:
            reasons.append(event.finish_reason)
    assert set(reasons) == {"cancelled"}
    tickets[0].cancel()  # late, and so nothing
    wait_until(lambda: remote.progress().occupancy.running == 0)
    assert remote.progress().occupancy.waiting == 0
    assert remote.progress().work.denoising_steps > 0


def test_its_death_is_told(demo_bundle: Path) -> None:
    told = threading.Event()
    engine = EngineProcess(demo_bundle, died=told.set)
    os.kill(engine.pid, signal.SIGKILL)
    assert told.wait(60)
    assert engine.progress().occupancy.running == 0  # what it last said
    engine.close()


def test_it_ends_with_its_owner(demo_bundle: Path) -> None:
    code = f"""
import sys
from trtllm_build.runtime.process import EngineProcess
engine = EngineProcess({str(demo_bundle)!r}, died=lambda: None)
print(engine.pid, flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        engine = int(owner.stdout.readline())
        owner.kill()
    wait_until(lambda: not Path(f"/proc/{engine}").exists())


def test_it_ends_with_its_owner_while_it_loads(demo_bundle: Path) -> None:
    """It is stopped, as if loading took for ever: nothing that it does itself can end it."""
    code = f"""
from trtllm_build.runtime.process import EngineProcess
EngineProcess({str(demo_bundle)!r}, died=lambda: None)
"""
    with subprocess.Popen([sys.executable, "-c", code]) as owner:
        children = Path(f"/proc/{owner.pid}/task/{owner.pid}/children")
        wait_until(lambda: bool(children.read_text()))
        engine = int(children.read_text())
        wait_until(lambda: b"trtllm_build.runtime.process" in Path(f"/proc/{engine}/cmdline").read_bytes())
        os.kill(engine, signal.SIGSTOP)
        owner.kill()
    wait_until(lambda: not Path(f"/proc/{engine}").exists())


def test_it_has_its_cpus_whatever_those_of_who_started_it(demo_bundle: Path) -> None:
    code = f"""
import os, sys
from trtllm_build.runtime.process import EngineProcess
assert "torch" not in sys.modules  # whose seconds both processes take at the same time
every = os.sched_getaffinity(0)
os.sched_setaffinity(0, {{min(every)}})
engine = EngineProcess({str(demo_bundle)!r}, died=lambda: None, cpus=every)
threads = map(int, os.listdir(f"/proc/{{engine.pid}}/task"))
assert all(os.sched_getaffinity(thread) == every for thread in threads)
assert os.sched_getaffinity(0) == {{min(every)}}
engine.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_bundle_that_cannot_be_loaded_is_said_here(tmp_path: Path) -> None:
    with pytest.raises(FieldError, match="engine: .* a bundle directory with a manifest.json"):
        EngineProcess(tmp_path / "nothing", died=lambda: None)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
