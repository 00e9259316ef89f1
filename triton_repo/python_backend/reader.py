"""The processes that read prompts: a checkpoint's template and tokenizer run where they can be ended.

``python -m triton_repo.python_backend.reader FD`` is told over a socket what tokenizer to load, then makes a process
that reads of itself for each socket that it is sent. Such a process costs milliseconds, and what one prompt took of
memory goes with it.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.processes import end_with_parent, lower, memory, parent_of
from nemo_diffgemma.tokenizer import Tokenizer
from triton_repo.python_backend.decisions import lay_out
from triton_repo.python_backend.prompt import Prompt, Room, tokenise
from triton_repo.python_backend.readers import RENDER_BYTES, RENDER_S, RENDERED
from trtllm_build.decisions.layout import Layouts
from trtllm_build.runtime.grammars import Grammars

_LOOK_S = 1.0


def main(arguments: list[str]) -> None:
    """The process that makes the others; ends with its socket, or with who started it."""
    control = socket.socket(fileno=int(arguments[0]))
    with Connection(os.dup(control.fileno())) as told:
        directory, context, canvas, vocab_size, eos_ids = told.recv()
        tokenizer = Tokenizer(directory)
        room = Room(context, tokenizer.most_bytes_per_token)
        told.send(room)
    grammars = Grammars(tokenizer, vocab_size, eos_ids)
    grammars.prepare()  # a second for the largest vocabulary; the other processes have it with this one's memory
    layouts = Layouts(tokenizer, canvas, eos_ids[0])
    gc.collect()
    lower(resource.RLIMIT_CORE, 0)
    gc.freeze()  # else the processes would soon have copies of pages that they only count references in
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever talks to one sees its end
    own = os.getpid()
    model = os.getppid()
    server = parent_of(model)
    while True:
        if not select.select([control], [], [], _LOOK_S)[0]:
            _end_orphans(model, server)
            continue
        nice, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        if os.fork() == 0:
            end_with_parent(signal.SIGKILL, own)
            control.close()
            os.nice(nice[0])
            _read(Connection(descriptors[0]), tokenizer, room, grammars, layouts)
        os.close(descriptors[0])


def _end_orphans(model: int, server: int | None) -> None:
    """End the models' processes when tritonserver has gone: one that waits for it, with Python's lock, never would."""
    if parent_of(model) != server:
        if os.getpgrp() == server:
            os.killpg(server, signal.SIGKILL)
        os.kill(model, signal.SIGKILL)


def _read(pipe: Connection, tokenizer: Tokenizer, room: Room, grammars: Grammars, layouts: Layouts) -> None:
    """Read prompts until nobody sends any more; does not return."""

    @contextmanager
    def rendering() -> Iterator[None]:
        with _limits():
            yield
        pipe.send(RENDERED)

    try:
        pipe.send(os.getpid())
        while True:
            prompt: Prompt = pipe.recv()
            try:
                if prompt.decisions is not None:
                    pipe.send(lay_out(prompt, layouts, room, rendering))
                    continue
                # first: what is no grammar is refused in less time than a prompt may take
                automaton = (
                    None if prompt.compiled or not prompt.grammar else grammars.automaton(json.loads(prompt.grammar))
                )
                pipe.send(replace(tokenise(prompt, tokenizer, room, rendering), grammar=automaton))
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
