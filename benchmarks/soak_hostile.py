"""What hostile clients do beside the soak's honest ones, from a process of their own: ``with Hostile(...)``.

The attacks are those of ``tests/cases``: on Triton's ports and the gateway, each told what it is told when nobody else
is there. Left out is what SECURITY.md and docs/load.md say ends tritonserver 2.51 itself: the header
``triton_grpc_error``, by which ordinary refusals end it now and then; shapes that overflow; and whatever is broken
about chunks goes to the gateway alone.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx

from nemo_diffgemma.processes import raise_open_files
from tests.cases.serving.hostile import BODIES, POST, RAW, sent
from tests.cases.triton.attack import Attack
from tests.cases.triton.attacks import ATTACKS, cancel, reset
from tests.cases.triton.target import Target
from trtllm_build.hardware import beside_the_engine

UNFINISHED = 1100  # connections; more than the files that most systems let a process have
_TRICKLED = 20  # of them get a byte each time
_OPENED_S, _OPENED = 0.25, 50  # so many connections are opened so often, at most
_PAUSE_S = 0.1  # after each of the other attacks; each kind has a thread
_STARTS = (b"", POST, POST + b"content-length: 9\r\n\r\n{")
_NOT_NOW = "wait already; the limit is"  # a full queue, which honest clients see, too
_ENDS_S = 60.0


@dataclass(frozen=True)
class Place:
    """Where the attackers find the service; what :class:`tests.cases.triton.target.Served` asks for, and the gateway.

    Args:
        grpc_url, http_url: tritonserver's.
        openai_url: of the gateway, with ``/v1``.
        pid: tritonserver's.
    """

    grpc_url: str
    http_url: str
    openai_url: str
    pid: int


@dataclass
class Done:
    """What the attackers did.

    Args:
        counts: attacks by kind.
        problems: what was answered otherwise than it is alone, in words.
    """

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class Hostile:
    """Attacks ``place`` inside its context; afterwards ``done`` says what came of it.

    Before it begins, each attack has been made once: what they make processes fetch for good, they have fetched then.
    """

    def __init__(self, place: Place):
        context = multiprocessing.get_context("spawn")
        self.done = Done()
        self._ending = context.Event()
        self._ours, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_attack, args=(place, self._ending, theirs), daemon=True)
        self._process.start()
        theirs.close()
        assert self._ours.recv() == "ready"

    def __enter__(self) -> Hostile:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self.done = self._ours.recv() if self._ours.poll(_ENDS_S) else Done(problems=["the attackers did not end"])
        self._process.join(_ENDS_S)
        self._process.kill()


def _attack(place: Place, ending: Event, ours: Any) -> None:
    os.sched_setaffinity(0, beside_the_engine())  # it stands for other machines
    raise_open_files()
    done = Done()
    target = Target(place)
    triton = {name: attack for name, attack in ATTACKS.items() if not _crowd(name)}
    kinds: dict[str, tuple[int, Callable[[int], str | None]]] = {
        "Triton's ports": (len(triton), _each(triton, lambda attack: _told(attack, target))),
        "bytes": (len(RAW), _each(RAW, lambda given: _raw(place, *given))),
        "bodies": (len(BODIES), _each(BODIES, lambda given: _body(place, *given))),
        "cancelled": (1, lambda number: _none(cancel(target, number))),
        "reset": (1, lambda number: _none(reset(target, number))),
        "hung up on the gateway": (1, lambda number: _hang_up(place, number)),
    }
    once = [threading.Event() for _ in kinds]
    threads = [
        threading.Thread(target=_repeat, args=(kind, *what, ending, done, event))
        for event, (kind, what) in zip(once, kinds.items(), strict=True)
    ]
    threads.append(threading.Thread(target=_hold, args=(place, ending, done)))
    for thread in threads:
        thread.start()
    for event in once:
        event.wait()
    done.counts.clear()
    ours.send("ready")
    for thread in threads:
        thread.join()
    target.close()
    ours.send(done)


def _crowd(name: str) -> bool:
    """Whether it is many of what ``cancelled`` and ``reset`` do at their own pace."""
    return name.endswith(("cancelled", "reset"))


def _repeat(
    kind: str, several: int, once: Callable[[int], str | None], ending: Event, done: Done, made: threading.Event
) -> None:
    """Attack until it is to end; ``made`` is set after so many."""
    number = 0
    while not ending.wait(_PAUSE_S):
        try:
            problem = once(number)
        except (OSError, httpx.HTTPError, grpc.RpcError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem is not None:
            done.problems.append(f"{kind}: {problem}")
        done.counts[kind] += 1
        number += 1
        if number == several:
            made.set()


def _each(attacks: Mapping[str, Any], once: Callable[[Any], str | None]) -> Callable[[int], str | None]:
    """All of them, in an order of its own each time."""
    draw = random.Random(0)
    order: list[str] = []

    def run(_number: int) -> str | None:
        if not order:
            order.extend(draw.sample(list(attacks), len(attacks)))
        name = order.pop()
        problem = once(attacks[name])
        return None if problem is None else f"{name}: {problem}"

    return run


def _none(_told: str) -> None:
    return None


def _told(attack: Attack, target: Target) -> str | None:
    told = attack.run(target)
    return None if told.startswith(attack.told) or _NOT_NOW in told else f"told {told[:100]!r}, not {attack.told!r}"


def _raw(place: Place, content: bytes, statuses: tuple[int, ...]) -> str | None:
    found = sent(_gateway(place), content)
    return None if not found or int(found.split()[1]) in statuses else f"told {found[:100]!r}"


def _body(place: Place, headers: dict[str, str], body: bytes, status: int) -> str | None:
    named = {"content-type": "application/json", **headers}
    answer = httpx.post(f"{place.openai_url}/completions", content=body, headers=named, timeout=120)
    return None if answer.status_code in (status, 503) else f"status {answer.status_code}, not {status}"


def _hang_up(place: Place, number: int) -> None:
    body = {"model": "diffgemma", "prompt": "red", "max_tokens": 200, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{place.openai_url}/completions", json=body, timeout=120) as answer:
        time.sleep(number % 10 * 0.002)
        next(answer.iter_raw(), b"")


def _gateway(place: Place) -> tuple[str, int]:
    url = urlsplit(place.openai_url)
    assert url.hostname is not None
    assert url.port is not None
    return url.hostname, url.port


def _hold(place: Place, ending: Event, done: Done) -> None:
    """Connections to the gateway that never finish; those that it ends are opened again."""
    held: list[socket.socket] = []
    try:
        while not ending.wait(_OPENED_S):
            held = [one for one in held if _open(one)]
            for one in held[:_TRICKLED]:
                with suppress(OSError):
                    one.send(b"a")
            for _ in range(min(_OPENED, UNFINISHED - len(held))):
                with suppress(OSError):
                    one = socket.create_connection(_gateway(place), timeout=5)
                    held.append(one)
                    one.send(_STARTS[len(held) % len(_STARTS)])
                    one.setblocking(False)
                    done.counts["unfinished connections"] += 1
    finally:
        for one in held:
            one.close()


def _open(one: socket.socket) -> bool:
    """Whether the other end has not ended it; closes it otherwise."""
    try:
        if one.recv(2**12):
            return True  # it is told why, and ended then
    except BlockingIOError:
        return True
    except OSError:
        pass
    one.close()
    return False
