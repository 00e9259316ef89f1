"""Reads prompts in processes of their own, so that none holds up the others; clients take turns."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.processes import end_with_parent, python
from triton_repo.python_backend import LOOK_S
from triton_repo.python_backend.prompt import Prompt, Room, TokenIds
from triton_repo.python_backend.turns import Turns
from trtllm_build.grammar.kept import Kept
from trtllm_build.grammar.token_automaton import TokenAutomaton
from trtllm_build.runtime.scheduler import QueueFull

# A prompt that is longer, or takes longer than this, is read beside the others: they do not wait for it.
LONG, PATIENCE_S = 2**16, 0.1
# Prompts that are read beside the others at the same time, and what all who wait may come to.
ASIDE, MOST_WAITING, MOST_CHARACTERS = 2, 256, 64 * 2**20
_NICE = 10  # of those
# What a chat template may take for one conversation: seconds of a CPU, bytes. What a process says once it has run.
RENDER_S, RENDER_BYTES, RENDERED = 5, 2**30, "rendered"
_LOG = logging.getLogger(__name__)
_MODULE = "triton_repo.python_backend.reader"

Read = TokenIds | Exception


@dataclass(frozen=True)
class _Job:
    client: str
    prompt: Prompt
    gone: Callable[[], bool]
    done: Callable[[Read | None], None]  # None: nobody waits


class Readers:
    """The processes, and a thread for each. Prompts of :data:`LONG` characters at most are read one after the other.

    What takes longer than :data:`PATIENCE_S` is begun again beside them, where :data:`ASIDE` can be read at once.

    Args:
        died: called, from a thread of its own, when no more can be read.
    """

    def __init__(self, died: Callable[[], None]):
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [python(), "-m", _MODULE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                preexec_fn=partial(end_with_parent, signal.SIGKILL, os.getpid()),
            )
        self._died = died
        self._closing = False
        self._lock = threading.Lock()
        self._waiting: dict[int, _Job] = {}  # by number
        self._numbers = itertools.count()
        self._first, self._aside = Turns[_Job](), Turns[_Job]()
        self._grammars = Kept[TokenAutomaton]()  # by their JSON; a process that reads may end with what it knows
        self.room = Room(0, None)

    def open(self, tokenizer: Path | None, context: int, canvas: int, vocab_size: int, eos_ids: Sequence[int]) -> None:
        """Be ready to read for an engine of so many tokens of context.

        Args:
            tokenizer: where it lies; None for an engine without one.
            context: tokens of the engine's context.
            canvas: tokens of its canvas.
            vocab_size: token ids run from 0 to this, exclusive.
            eos_ids: tokens that end an answer.

        Raises:
            RuntimeError: when the process cannot load the tokenizer.
        """
        self.room = Room(context, None)
        if tokenizer is not None:
            with Connection(os.dup(self._control.fileno())) as told:
                told.send((tokenizer, context, canvas, vocab_size, tuple(eos_ids)))
                try:
                    self.room = told.recv()
                except (EOFError, OSError):
                    raise RuntimeError(f"the reading process ended with status {self._process.wait()}") from None
        for take, jobs in [(self._read_first, self._first), *[(self._read_aside, self._aside)] * ASIDE]:
            reader = _Reader(self._control, 0 if take == self._read_first else _NICE)
            threading.Thread(target=self._run, args=(take, jobs, reader), name="reader", daemon=True).start()

    def read(self, prompt: Prompt, gone: Callable[[], bool], done: Callable[[Read], None], client: str = "") -> None:
        """Have a prompt read; returns at once.

        Args:
            prompt: what to read.
            gone: whether nobody waits for it any more.
            done: called once, from another thread, with what it became; not when ``gone``. It must not block.
            client: whose it is; clients take turns. Where as many wait as may wait, the last prompt of the one that has
                most there gives way to one that has at least two fewer: it becomes :class:`QueueFull`.

        Raises:
            QueueFull: when as many wait as may wait, and none gives way.
        """
        known = self._grammars.find(prompt.grammar)
        number = next(self._numbers)
        done = partial(self._end, number, prompt.grammar, known, done)
        job = _Job(client, replace(prompt, compiled=known is not None), gone, done)
        with self._lock:
            if not self._has_room(prompt.size):
                # those that nobody waits for take no place
                self._waiting = {n: waiting for n, waiting in self._waiting.items() if not waiting.gone()}
            full = len(self._waiting) >= MOST_WAITING
            displaced = self._displace(client) if full and self._fits(prompt.size) else None
            if not self._has_room(prompt.size):
                said = f"{len(self._waiting)} prompts of {self._characters()} characters"
                raise QueueFull(f"the queue is full: {said} wait to be read; try again later")
            self._waiting[number] = job
        if displaced is not None:
            displaced.done(QueueFull("the queue is full, and others have less there; try again later"))
        self._first.put(client, job)

    def close(self) -> None:
        """End the processes; what was not read is not answered."""
        self._closing = True
        self._process.kill()
        self._process.wait()
        self._control.close()

    def _displace(self, client: str) -> _Job | None:
        waiting = Counter(job.client for job in self._waiting.values())
        most = max(waiting, key=waiting.__getitem__)
        if waiting[most] < waiting[client] + 2:
            return None
        last = self._first.drop(most) or self._aside.drop(most)
        self._waiting = {n: job for n, job in self._waiting.items() if job is not last}
        return last

    def _characters(self) -> int:
        return sum(job.prompt.size for job in self._waiting.values())

    def _has_room(self, characters: int) -> bool:
        return len(self._waiting) < MOST_WAITING and self._fits(characters)

    def _fits(self, characters: int) -> bool:
        return not self._waiting or self._characters() + characters <= MOST_CHARACTERS

    def _end(
        self,
        number: int,
        grammar: str | None,
        known: TokenAutomaton | None,
        done: Callable[[Read], None],
        read: Read | None,
    ) -> None:
        with self._lock:
            self._waiting.pop(number, None)
        if isinstance(read, TokenIds):
            if known is not None:
                read = replace(read, grammar=known)
            elif read.grammar is not None:
                self._grammars.keep(grammar, read.grammar, read.grammar.bytes)
        if read is not None:
            done(read)

    def _run(self, take: Callable[[_Reader, _Job], None], jobs: Turns[_Job], reader: _Reader) -> None:
        while True:
            job = jobs.get()
            try:
                take(reader, job)
            except _NoProcess:
                if not self._closing:
                    _LOG.error("the process that makes those that read prompts has ended")
                    self._died()
                return
            except Exception as error:
                _LOG.exception("a prompt was not read")
                job.done(error)

    def _read_first(self, reader: _Reader, job: _Job) -> None:
        prompt = job.prompt
        if job.gone():
            job.done(None)
        elif isinstance(prompt.value, tuple) and not prompt.suffix and (prompt.compiled or not prompt.grammar):
            job.done(TokenIds(prompt.value))
        elif prompt.size > LONG or (read := reader.read(prompt, job.gone, PATIENCE_S)) is None:
            self._aside.put(job.client, job)
        else:
            job.done(read)

    def _read_aside(self, reader: _Reader, job: _Job) -> None:
        job.done(None if job.gone() else reader.read(job.prompt, job.gone))


class _NoProcess(Exception):
    """Nothing can be read any more."""


class _Reader:
    """One process at a time; a new one when it has ended."""

    def __init__(self, control: socket.socket, nice: int):
        self._control = control
        self._nice = nice
        self._pipe: Connection[Any, Any] | None = None
        self._pid = 0

    def read(self, prompt: Prompt, gone: Callable[[], bool], patience_s: float = float("inf")) -> Read | None:
        """What ``prompt`` becomes, or what is wrong with it; None when it is given up."""
        pipe = self._ready()
        rendered = False
        end = time.monotonic() + patience_s
        try:
            pipe.send(prompt)
            while True:
                if pipe.poll(max(0.0, min(LOOK_S, end - time.monotonic()))):
                    read: Read | str = pipe.recv()
                    if isinstance(read, str):
                        rendered = read == RENDERED
                        continue
                    if prompt.size > LONG:
                        self._close()  # and its memory
                    return read
                if gone() or time.monotonic() > end:
                    self._kill()
                    return None
        except (EOFError, OSError):
            self._close()
            return _ended(prompt, rendered)

    def _ready(self) -> Connection[Any, Any]:
        if self._pipe is None:
            ours, theirs = Pipe()
            with theirs:
                try:
                    socket.send_fds(self._control, [bytes([self._nice])], [theirs.fileno()])
                except OSError:
                    raise _NoProcess from None
            try:
                self._pid = ours.recv()
            except (EOFError, OSError):
                raise _NoProcess from None
            self._pipe = ours
        return self._pipe

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self._close()

    def _close(self) -> None:
        assert self._pipe is not None
        self._pipe.close()
        self._pipe = None


def _ended(prompt: Prompt, rendered: bool) -> Exception:
    """Why a process has ended that read ``prompt``."""
    if prompt.name != "messages" or rendered:
        return RuntimeError("the process that read the prompt has ended")
    return FieldError(
        field="messages",
        value=f"{prompt.size} characters",
        allowed=f"what the checkpoint's chat template renders in {RENDER_S} s of a CPU and {RENDER_BYTES} bytes",
        fix="shorten it, or take the template that the checkpoint's publisher gives, and build again",
    )
