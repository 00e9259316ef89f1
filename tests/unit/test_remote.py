"""The engine in a process of its own behaves as the one in this process, and neither outlives the other."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_diffgemma.errors import FieldError
from trtllm_build import Engine, load_engine
from trtllm_build.runtime.remote import RemoteEngine
from trtllm_build.runtime.request import Block, Draft, Request, SamplerConfig

STEADY = SamplerConfig(max_denoising_steps=4)
ENDLESS = Request((3,), 200, sampler=SamplerConfig(max_denoising_steps=2**31 - 1), ignore_eos=True, draft_every=1)


@pytest.fixture(scope="module")
def local(demo_bundle: Path) -> Iterator[Engine]:
    engine = load_engine(demo_bundle)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def remote(demo_bundle: Path) -> Iterator[RemoteEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
        engine = RemoteEngine(demo_bundle, died=lambda: None)
    yield engine
    engine.close()


def events(engine: RemoteEngine, request: Request) -> Iterator[Any]:
    inbox: queue.Queue[Any] = queue.Queue()
    engine.submit(request, inbox.put)
    while True:
        event = inbox.get(timeout=60)
        yield event
        if isinstance(event, Exception) or (isinstance(event, Block) and event.finish_reason):
            return


def test_it_gives_the_same_answers_at_the_same_time(local: Engine, remote: RemoteEngine) -> None:
    assert (remote.limits, remote.sampler, remote.manifest) == (local.limits, local.sampler, local.manifest)
    requests = [Request((3, 4, 5), 40, seed, STEADY, ignore_eos=True) for seed in range(12)]
    expected = [g.token_ids for g in local.run(requests)]
    inbox: queue.Queue[Any] = queue.Queue()
    found: dict[int, tuple[int, ...]] = dict.fromkeys(range(12), ())
    for i, request in enumerate(requests):
        remote.submit(request, lambda event, i=i: inbox.put((i, event)))  # type: ignore[misc]
    ended = 0
    while ended < 12:
        i, event = inbox.get(timeout=60)
        found[i] += event.token_ids
        ended += event.finish_reason is not None
    assert list(found.values()) == expected


def test_what_it_refuses_comes_as_it_was_raised(local: Engine, remote: RemoteEngine) -> None:
    request = Request((3, 300), 4)
    with pytest.raises(FieldError) as error:
        local.submit(request, lambda event: None)
    (refusal,) = events(remote, request)
    assert isinstance(refusal, FieldError)
    assert (str(refusal), refusal.field, refusal.remedy) == (str(error.value), error.value.field, error.value.remedy)


def test_cancelling_frees_the_slot(remote: RemoteEngine) -> None:
    inbox: queue.Queue[Any] = queue.Queue()
    tickets = [remote.submit(ENDLESS, inbox.put) for _ in range(remote.limits.slots + 1)]
    assert isinstance(inbox.get(timeout=60), Draft)
    assert remote.progress().occupancy.running >= 1
    for ticket in tickets:
        ticket.cancel()
    reasons = []
    while len(reasons) < len(tickets):
        event = inbox.get(timeout=60)
        if isinstance(event, Block) and event.finish_reason:
            reasons.append(event.finish_reason)
    assert set(reasons) == {"cancelled"}
    tickets[0].cancel()  # late, and so nothing
    progress = remote.progress()
    assert (progress.occupancy.waiting, progress.occupancy.running) == (0, 0)
    assert progress.work.denoising_steps > 0


def test_its_death_is_told(demo_bundle: Path) -> None:
    told = threading.Event()
    engine = RemoteEngine(demo_bundle, died=told.set)
    (pid,) = children(os.getpid(), "trtllm_build.runtime.remote")[-1:]
    os.kill(pid, signal.SIGKILL)
    assert told.wait(60)
    assert engine.progress().occupancy.running == 0  # what it last said; it does not wait for ever
    engine.close()


def test_it_ends_with_its_owner(demo_bundle: Path) -> None:
    code = f"""
import sys
from trtllm_build.runtime.remote import RemoteEngine
engine = RemoteEngine({str(demo_bundle)!r}, died=lambda: None)
print("up", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        (pid,) = children(owner.pid, "trtllm_build.runtime.remote")
        handle = os.pidfd_open(pid)
        owner.kill()
    poller = threading.Event()
    for _ in range(600):
        try:
            signal.pidfd_send_signal(handle, 0)
        except ProcessLookupError:
            break
        poller.wait(0.1)
    else:
        pytest.fail("the engine outlived its owner")


def test_a_bundle_that_cannot_be_loaded_is_said_here(tmp_path: Path) -> None:
    with pytest.raises(FieldError, match="engine: .* a bundle directory with a manifest.json"):
        RemoteEngine(tmp_path / "nothing", died=lambda: None)


def children(pid: int, module: str) -> list[int]:
    found = (path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    pids = [int(child) for row in found for child in row]
    return [child for child in pids if module in Path(f"/proc/{child}/cmdline").read_text()]
