"""The processes that read prompts: a checkpoint's template and tokenizer run where they can be ended.

``python -m triton_repo.python_backend.reader FD`` is told over a socket what tokenizer to load, then makes a process
that reads of itself for each socket that it is sent. Such a process costs milliseconds, and what one prompt took of
memory goes with it.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.processes import end_with_parent, lower, memory
from nemo_diffgemma.tokenizer import Tokenizer
from triton_repo.python_backend.prompt import Room, tokenise
from triton_repo.python_backend.readers import RENDER_BYTES, RENDER_S, RENDERED


def main(arguments: list[str]) -> None:
    """The process that makes the others; ends with its socket, or with who started it."""
    control = socket.socket(fileno=int(arguments[0]))
    with Connection(os.dup(control.fileno())) as told:
        directory, context = told.recv()
        tokenizer = Tokenizer(directory)
        room = Room(context, tokenizer.most_bytes_per_token)
        told.send(room)
    gc.collect()
    lower(resource.RLIMIT_CORE, 0)
    gc.freeze()  # else the processes would soon have copies of pages that they only count references in
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever talks to one sees its end
    own = os.getpid()
    while True:
        nice, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        if os.fork() == 0:
            end_with_parent(signal.SIGKILL, own)
            control.close()
            os.nice(nice[0])
            _read(Connection(descriptors[0]), tokenizer, room)
        os.close(descriptors[0])


def _read(pipe: Connection, tokenizer: Tokenizer, room: Room) -> None:
    """Read prompts until nobody sends any more; does not return."""

    @contextmanager
    def rendering() -> Iterator[None]:
        with _limits():
            yield
        pipe.send(RENDERED)

    try:
        pipe.send(os.getpid())
        while True:
            prompt = pipe.recv()
            try:
                pipe.send(tokenise(prompt, tokenizer, room, rendering))
            except FieldError as refusal:
                pipe.send(refusal)
            except Exception as error:
                pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
    finally:  # whatever it was: who waits sees that the pipe is closed
        os._exit(0)


@contextmanager
def _limits() -> Iterator[None]:
    """Let the kernel end what takes too long, whatever it is doing, and refuse it too much memory."""
    before = resource.getrlimit(resource.RLIMIT_CPU)
    lower(resource.RLIMIT_CPU, int(time.process_time()) + 1 + RENDER_S)
    try:
        with memory(RENDER_BYTES):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, before)


if __name__ == "__main__":
    main(sys.argv[1:])
