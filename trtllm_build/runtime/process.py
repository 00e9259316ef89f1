"""The engine in a process of its own, so that neither Python's lock nor the CPU of who asks holds it up.

``python -m trtllm_build.runtime.process FD DIRECTORY CPUS`` is that process; :class:`EngineProcess` starts it and
speaks to it over a socket pair, in pickles: requests one way, events the other.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.processes import end_with_parent, python
from trtllm_build.limits import Limits
from trtllm_build.runtime.read import Reading, ReadRequest
from trtllm_build.runtime.request import Block, Event, Request
from trtllm_build.runtime.scheduler import QueueFull
from trtllm_build.runtime.stats import Progress
from trtllm_build.sampling import SamplerConfig

if TYPE_CHECKING:
    from trtllm_build.runtime.engine import Engine
    from trtllm_build.runtime.ticket import Ticket

REPORT_S = 0.1  # progress is told this often, if there is any
_LOG = logging.getLogger(__name__)


class RemoteTicket:
    """The way to cancel a request of an :class:`EngineProcess`."""

    def __init__(self, cancel: Callable[[], None]):
        self._cancel = cancel

    def cancel(self) -> None:
        """End the request at the next denoising step; its last event says ``cancelled``. May be called at any time."""
        self._cancel()


class EngineProcess:
    """A loaded bundle in another process, which has generated. Every method may be called from any thread.

    It ends with the thread that makes this object, from its first moment on.

    Args:
        directory: the bundle.
        died: called, from a thread of its own, when that process ends unasked.
        cpus: which it may run on; None for those of this process.

    Raises:
        FieldError: as :func:`~trtllm_build.runtime.engine.load_engine` does.
        RuntimeError: when it ends before it is loaded.
    """

    def __init__(self, directory: str | Path, died: Callable[[], None], cpus: Iterable[int] | None = None):
        ours, theirs = socket.socketpair()
        with theirs:
            command = [python(), "-m", __name__, str(theirs.fileno()), str(directory), ",".join(map(str, cpus or ()))]
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # while it loads it reads nothing, and would not notice that nobody waits for it any more
                preexec_fn=partial(end_with_parent, signal.SIGKILL, os.getpid()),
            )
        self.pid = self._process.pid
        self._pipe = _Pipe(ours)
        self._died = died
        self._closing = False
        self._requests = 0
        self._numbering = threading.Lock()
        self._receivers: dict[int, Callable[[Event | Reading | Exception], None]] = {}
        # It takes as long to import as the engine does, which the other process does meanwhile.
        from nemo_diffgemma.tokenizer import Tokenizer
        from trtllm_build.runtime.grammars import Grammars

        self.manifest: dict[str, Any]
        tokenizer: Path | None
        self.limits: Limits
        self.sampler: SamplerConfig
        self._progress: Progress
        self.eos_ids: tuple[int, ...]
        self.manifest, self.limits, self.sampler, self.eos_ids, tokenizer, self._progress = self._first()
        self.tokenizer_directory = tokenizer
        self.tokenizer = None if tokenizer is None else Tokenizer(tokenizer)
        self.grammars = Grammars(self.tokenizer, self.limits.vocab_size, self.eos_ids)
        self._thread = threading.Thread(target=self._receive, name="engine-process", daemon=True)
        self._thread.start()

    def submit(
        self, request: Request | ReadRequest, on_event: Callable[[Event | Reading | Exception], None]
    ) -> RemoteTicket:
        """Send a request; returns at once.

        Args:
            request: what to generate, or to read.
            on_event: called from one thread with drafts and blocks, or readings and a block; the last is a block with a
                finish reason, or the exception that :meth:`Engine.submit` or :meth:`Engine.submit_read` raised. It must
                not block.
        """
        with self._numbering:
            key = self._requests
            self._requests += 1
        self._receivers[key] = on_event
        self._send(("submit", key, request))
        return RemoteTicket(lambda: self._send(("cancel", key, None)))

    def progress(self) -> Progress:
        """As :meth:`Engine.progress`, at most :data:`REPORT_S` ago while the engine is alive."""
        return self._progress

    def close(self) -> None:
        """Cancel every request and end the process."""
        self._closing = True
        self._send(None)
        self._process.wait()
        self._thread.join()

    def _first(self) -> Any:
        """What the process says when it is loaded, or raise what ended it."""
        try:
            first = self._pipe.receive()
        except (EOFError, OSError):
            raise RuntimeError(f"the engine's process ended with status {self._process.wait()}") from None
        if isinstance(first, Exception):
            self._process.wait()
            raise first
        return first

    def _send(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError:  # it has died, which the receiving thread tells
            _LOG.debug("not sent")

    def _receive(self) -> None:
        try:
            while True:
                key, event = self._pipe.receive()
                if isinstance(event, Progress):
                    self._progress = event
                    continue
                receiver = self._receivers.pop(key) if _is_last(event) else self._receivers[key]
                receiver(event)
        except (EOFError, OSError):
            if not self._closing:
                _LOG.error("the engine's process ended with status %s", self._process.wait())
                self._died()


class _Pipe:
    """Objects over a socket; any thread may send, one receives."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        # Buffered: what has come is read at once, not a header first, after which Python's lock has to be waited for.
        self._reader: BinaryIO = connection.makefile("rb")
        self._sending = threading.Lock()

    def send(self, message: Any) -> None:
        """Raises OSError when nobody is there any more."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._sending:
            self._connection.sendall(data)

    def receive(self) -> Any:
        """Raises EOFError, or OSError, when nobody is there any more."""
        try:
            return pickle.load(self._reader)  # from a process that we started, or that started us
        except pickle.UnpicklingError as error:  # cut off
            raise EOFError from error


def _is_last(event: Event | Reading | Exception) -> bool:
    return isinstance(event, Exception) or (isinstance(event, Block) and event.finish_reason is not None)


def _portable(error: Exception) -> Exception:
    """Others need not survive pickling."""
    return error if isinstance(error, FieldError | QueueFull) else RuntimeError(f"{type(error).__name__}: {error}")


class _Service:
    """Does what comes over ``pipe``, until its other end is gone or says so.

    What the engine reports is sent from its own thread: handing it to another would cost more. It waits only when
    nobody reads.
    """

    def __init__(self, pipe: _Pipe, engine: Engine):
        self._pipe = pipe
        self._engine = engine
        self._tickets: dict[int, Ticket] = {}
        self._ticketing = threading.Lock()  # a request may end before its ticket is noted
        self._closing = threading.Event()

    def run(self) -> None:
        """Returns when it is told to end."""
        reporter = threading.Thread(target=self._report, name="reporter", daemon=True)
        reporter.start()
        while (message := self._receive()) is not None:
            what, key, request = message
            if what == "cancel":
                if (found := self._tickets.get(key)) is not None:
                    found.cancel()
                continue
            try:
                with self._ticketing:
                    submit = self._engine.submit_read if isinstance(request, ReadRequest) else self._engine.submit
                    self._tickets[key] = submit(request, self._sender(key))
            except Exception as error:
                self._send(key, _portable(error))
        self._closing.set()
        reporter.join()

    def _sender(self, key: int) -> Callable[[Event | Reading], None]:
        def on_event(event: Event | Reading) -> None:
            if _is_last(event):
                with self._ticketing:
                    self._tickets.pop(key, None)
            self._send(key, event)

        return on_event

    def _report(self) -> None:
        """Tell progress, when there is any."""
        told = None
        while not self._closing.wait(REPORT_S):
            if (progress := self._engine.progress()) != told:
                self._send(None, progress)
                told = progress

    def _receive(self) -> Any:
        try:
            return self._pipe.receive()
        except (EOFError, OSError):
            os._exit(0)  # who asked is gone, and nobody waits for what runs

    def _send(self, key: int | None, event: Event | Reading | Exception | Progress) -> None:
        try:
            self._pipe.send((key, event))
        except OSError:
            os._exit(0)


def main(arguments: list[str]) -> None:
    """The process."""
    descriptor, directory, cpus = arguments
    if cpus:  # before torch counts them
        os.sched_setaffinity(0, map(int, cpus.split(",")))
    pipe = _Pipe(socket.socket(fileno=int(descriptor)))
    from trtllm_build.runtime.engine import load_engine

    try:
        engine = load_engine(directory)
        # Who is told that it is loaded may rely on it: it has generated.
        engine.generate([[0]], max_tokens=1, max_denoising_steps=1)
        spec = engine.spec
        eos = tuple(spec.arch.eos_token_ids)
        loaded = (spec.manifest, spec.limits, spec.sampler, eos, spec.tokenizer_directory, engine.progress())
    except Exception as error:
        pipe.send(_portable(error))
        return
    pipe.send(loaded)
    _Service(pipe, engine).run()
    engine.close()


if __name__ == "__main__":
    main(sys.argv[1:])
