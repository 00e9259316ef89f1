"""The engine in a process of its own, for a caller whose own threads would hold up Python's lock.

``python -m trtllm_build.runtime.remote FD DIR`` is that process; :class:`RemoteEngine` starts it and speaks to it over
a socket pair: requests one way, events the other.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nemo_diffgemma.tokenizer import Tokenizer
from trtllm_build.bundle import MANIFEST, Bundle
from trtllm_build.runtime.engine import Engine, load_engine
from trtllm_build.runtime.request import Block, Event, Request
from trtllm_build.runtime.stats import Progress
from trtllm_build.runtime.ticket import Ticket

# An engine that answers later than this keeps what it last said of its progress.
_PATIENCE_S = 1.0
_LOG = logging.getLogger(__name__)


class RemoteTicket:
    """The way to cancel a request of a :class:`RemoteEngine`."""

    def __init__(self, key: int, send: Callable[[Any], None]):
        self._key = key
        self._send = send

    def cancel(self) -> None:
        """End the request at the next denoising step; its last event says ``cancelled``. May be called at any time."""
        self._send(("cancel", self._key))


class RemoteEngine:
    """A loaded bundle in another process. Every method may be called from any thread.

    Args:
        directory: the bundle.
        died: called, from a thread of its own, when that process ends unasked.

    Raises:
        FieldError: as :func:`~trtllm_build.runtime.engine.load_engine` does.
    """

    def __init__(self, directory: str | Path, died: Callable[[], None]):
        ours, theirs = socket.socketpair()
        with theirs:
            command = [_python(), "-m", __name__, str(theirs.fileno()), str(directory)]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._connection = Connection(ours.detach())
        self._died = died
        self._closing = False
        self._lock = threading.Lock()  # of sending, and of the next two
        self._requests = 0
        self._receivers: dict[int, Callable[[Event | Exception], None]] = {}
        self._progress: queue.SimpleQueue[Progress] = queue.SimpleQueue()
        loaded = self._first()
        # The other process has checked its files.
        bundle = Bundle(Path(directory), json.loads((Path(directory) / MANIFEST).read_text()))
        self.manifest, self.limits, self.sampler = bundle.manifest, bundle.limits, bundle.sampler
        self.tokenizer = None if bundle.tokenizer_directory is None else Tokenizer(bundle.tokenizer_directory)
        self._last: Progress = loaded
        self._thread = threading.Thread(target=self._receive, name="remote-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_event: Callable[[Event | Exception], None]) -> RemoteTicket:
        """Send a request; returns at once.

        Args:
            request: what to generate.
            on_event: called from one thread with drafts and blocks; the last is a block with a finish reason, or the
                exception that :meth:`Engine.submit` raised. It must not block.
        """
        with self._lock:
            key = self._requests
            self._requests += 1
            self._receivers[key] = on_event
        self._send(("submit", key, request))
        return RemoteTicket(key, self._send)

    def progress(self) -> Progress:
        """As :meth:`Engine.progress`; what it last was when the engine does not answer."""
        self._send(("progress",))
        try:
            self._last = self._progress.get(timeout=_PATIENCE_S)
            while True:  # of answers that came late, the last
                self._last = self._progress.get_nowait()
        except queue.Empty:
            return self._last

    def close(self) -> None:
        """Cancel every request and end the process."""
        self._closing = True
        self._send(None)
        self._process.wait()
        self._thread.join()

    def _first(self) -> Progress:
        try:
            first = self._connection.recv()
        except EOFError:
            raise RuntimeError(f"the engine's process ended with status {self._process.wait()}") from None
        if isinstance(first, Exception):
            self._process.wait()
            raise first
        assert isinstance(first, Progress)
        return first

    def _send(self, message: Any) -> None:
        with self._lock:
            try:
                self._connection.send(message)
            except OSError:  # it has died, which the receiving thread tells
                _LOG.debug("not sent")

    def _receive(self) -> None:
        try:
            while True:
                key, event = self._connection.recv()
                if key is None:
                    self._progress.put(event)
                    continue
                last = isinstance(event, Exception) or (isinstance(event, Block) and event.finish_reason is not None)
                receiver = self._receivers.pop(key) if last else self._receivers[key]
                receiver(event)
        except (EOFError, OSError):
            if not self._closing:
                self._died()


def _python() -> str:
    """Where Python is embedded in another program, ``sys.executable`` need not be Python."""
    own = Path(sys.prefix) / "bin" / "python3"
    return str(own) if own.is_file() else sys.executable


def _serve(connection: Connection, engine: Engine) -> None:
    """Do what comes over ``connection`` until it ends."""
    outbox: queue.SimpleQueue[tuple[int | None, Any]] = queue.SimpleQueue()
    tickets: dict[int, Ticket] = {}
    lock = threading.Lock()  # of the tickets: a request may end before its ticket is noted

    def send() -> None:
        while True:
            try:
                connection.send(outbox.get())
            except OSError:
                os._exit(0)  # nobody is there any more

    def receiver(key: int) -> Callable[[Event], None]:
        def on_event(event: Event) -> None:
            if isinstance(event, Block) and event.finish_reason is not None:
                with lock:
                    tickets.pop(key, None)
            outbox.put((key, event))

        return on_event

    threading.Thread(target=send, name="outbox", daemon=True).start()
    while (message := connection.recv()) is not None:
        match message:
            case ("submit", key, request):
                try:
                    with lock:
                        tickets[key] = engine.submit(request, receiver(key))
                except Exception as error:
                    outbox.put((key, error))
            case ("cancel", key):
                if (found := tickets.get(key)) is not None:
                    found.cancel()
            case ("progress",):
                outbox.put((None, engine.progress()))


def main(arguments: list[str]) -> None:
    """The process."""
    connection = Connection(int(arguments[0]))
    try:
        engine = load_engine(arguments[1])
        # Who is told that it is loaded may rely on it: it has generated.
        engine.generate([[0]], max_tokens=1, max_denoising_steps=1)
        connection.send(engine.progress())
    except Exception as error:
        connection.send(error)
        return
    try:
        _serve(connection, engine)
    except (EOFError, OSError):
        os._exit(0)  # who asked is gone; nobody waits for what runs
    engine.close()


if __name__ == "__main__":
    main(sys.argv[1:])
