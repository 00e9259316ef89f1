"""Keeps the service up and its readiness true: notices death and standstill, starts again, drains at the end."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from triton_repo.launcher.health import Health, State
from triton_repo.launcher.scrape import denoising_steps
from triton_repo.launcher.server import Server, ServerFailed

_LOOK_S = 0.25  # how often processes are looked at
_BEAT_S = 5.0  # how often signs of life are looked for, at least
_PROBE_S = 5.0  # how long one probe may take


@dataclass(frozen=True)
class Patience:
    """How long, and how often, things may go wrong.

    Args:
        doubt_s: seconds without a sign of life from the engine or the gateway after which the service is not ready.
        stall_s: seconds after which that one is started again.
        restarts: most restarts within ``window_s`` seconds; after that the service ends.
        window_s: see ``restarts``.
        drain_s: seconds that what runs gets at the end.
    """

    doubt_s: float = 20.0
    stall_s: float = 60.0
    restarts: int = 3
    window_s: float = 600.0
    drain_s: float = 30.0

    @property
    def beat_s(self) -> float:
        """Seconds from one look for a sign of life to the next: several before one is missed."""
        return min(_BEAT_S, self.doubt_s / 3)


class Pulse:
    """Signs of life, looked for from a thread of its own.

    Args:
        sign: whether there is one now; may take its time.
        beat_s: seconds from one look to the next.
    """

    def __init__(self, sign: Callable[[], bool], beat_s: float):
        self._sign = sign
        self._beat_s = beat_s
        self._seen = time.monotonic()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def silence_s(self) -> float:
        """Seconds since the last sign."""
        return time.monotonic() - self._seen

    def revived(self) -> None:
        """It has just been started."""
        self._seen = time.monotonic()

    def close(self) -> None:
        """Look no more; does not wait for a look under way."""
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.wait(self._beat_s):
            if self._sign():
                self._seen = time.monotonic()


class Progress:
    """The engine's sign of life: its count of denoising steps moves, or a generation of our own succeeds.

    A probe alone would not do: under load it may wait behind long requests, while the count shows that all is well.
    """

    def __init__(self, server: Server):
        self._server = server
        self._steps = denoising_steps(server.metrics_url)

    def __call__(self) -> bool:
        """Whether there is one now."""
        steps = denoising_steps(self._server.metrics_url)
        if steps is None or steps == self._steps:
            try:
                self._server.probe(_PROBE_S)
            except ServerFailed:
                return False
        self._steps = steps
        return True


class Supervisor:
    """Runs ``server`` until it is told to stop.

    Args:
        server: not yet started.
        health: what it reports to.
        patience: with what goes wrong.
        say: called with a line for the operator.
    """

    def __init__(self, server: Server, health: Health, patience: Patience, say: Callable[[str], None]):
        self._server = server
        self._health = health
        self._patience = patience
        self._say = say
        self._failures: deque[float] = deque()

    def run(self, started: Callable[[], None]) -> None:
        """Start, watch, start again, until a signal handler raises ``KeyboardInterrupt``; then drain. The second one
        ends it at once.

        Args:
            started: called when it is ready for the first time.

        Raises:
            KeyboardInterrupt: once all has ended.
            FieldError: as :class:`Server` does.
            ServerFailed: at the first start, or when it fails too often.
        """
        first = True
        while True:
            with self._server:
                self._report(State(live=True, ready=True, reason="serving"))
                if first:
                    started()
                    first = False
                try:
                    failure = self._watch()
                except KeyboardInterrupt:
                    self._drain()
                    raise
                # Before it is closed, which takes seconds.
                self._report(State(live=True, ready=False, reason=f"starting again: {failure.splitlines()[0]}"))
            self._say(f"error: {failure}")
            self._count(failure)
            self._say("starting again")

    def _drain(self) -> None:
        """Refuse what comes, let what runs finish."""
        self._report(State(live=True, ready=False, reason="shutting down"))
        self._say("shutting down: what runs may finish")
        if not self._server.drain(self._patience.drain_s):
            self._say(f"requests still run after {self._patience.drain_s:g} s; they are cut off")

    def _watch(self) -> str:
        """Until something is wrong; returns what."""
        beat_s = self._patience.beat_s
        pulse, gateway = Pulse(Progress(self._server), beat_s), Pulse(self._server.gateway_answers, beat_s)
        try:
            while True:
                time.sleep(_LOOK_S)
                if gateway.silence_s() > self._patience.stall_s and not self._server.gateway_died():
                    self._say(f"error: the gateway does not answer for {gateway.silence_s():.0f} s")
                    self._server.end_gateway()
                gateway_died = self._server.gateway_died()
                if gateway_died:
                    self._say("error: the gateway died; starting it again")
                    self._count("the gateway died")
                try:
                    self._server.check()
                    if gateway_died:
                        self._server.start_gateway()
                        gateway.revived()
                except ServerFailed as error:
                    return str(error)
                silence = pulse.silence_s()
                if silence > self._patience.stall_s:
                    return f"the engine stands still: no denoising step and no answer for {silence:.0f} s"
                reason = "serving"
                if silence > self._patience.doubt_s:
                    reason = f"no sign of life for {silence:.0f} s"
                elif gateway.silence_s() > self._patience.doubt_s:
                    reason = f"the gateway takes no connection, or does not answer, for {gateway.silence_s():.0f} s"
                self._report(State(live=True, ready=reason == "serving", reason=reason))
        finally:
            pulse.close()
            gateway.close()

    def _count(self, failure: str) -> None:
        now = time.monotonic()
        self._failures.append(now)
        while self._failures[0] < now - self._patience.window_s:
            self._failures.popleft()
        if len(self._failures) > self._patience.restarts:
            self._report(State(live=False, ready=False, reason="failed too often"))
            raise ServerFailed(f"it failed {len(self._failures)} times in {self._patience.window_s:g} s: {failure}")

    def _report(self, state: State) -> None:
        self._health.state = state
