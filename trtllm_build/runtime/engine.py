"""The engine object: load a bundle, generate."""

from __future__ import annotations

import atexit
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from nemo_diffgemma.errors import require
from nemo_diffgemma.tokenizer import Tokenizer
from trtllm_build.backends import load_backend
from trtllm_build.bundle import Bundle, unchanged
from trtllm_build.contract import Backend
from trtllm_build.hardware import available_cpus
from trtllm_build.limits import PAGE
from trtllm_build.network.cache import cache_bytes
from trtllm_build.runtime.grammars import Grammars
from trtllm_build.runtime.read import ReadCanvas, Reading, ReadRequest, Slot
from trtllm_build.runtime.reading import ReadingSequence
from trtllm_build.runtime.request import Block, Event, FinishReason, Request, RequestStats
from trtllm_build.runtime.scheduler import QueueFull, Scheduler
from trtllm_build.runtime.sequence import RunningSequence
from trtllm_build.runtime.stats import EngineStats, Progress
from trtllm_build.runtime.ticket import Ticket
from trtllm_build.runtime.worker import Worker
from trtllm_build.spec import EngineSpec

Prompt = str | Sequence[int]
_READ_OPTIONS = ("priority", "client", "cache_salt", "deadline")
_OPTIONS = tuple(f.name for f in fields(Request) if f.name not in ("prompt_ids", "max_tokens", "seed", "sampler"))


@dataclass(frozen=True)
class Generation:
    """A finished request.

    Args:
        text: decoded tokens; empty for an engine without a tokenizer.
        token_ids: returned tokens, without end of sequence and padding.
        finish_reason: why it ended.
        denoising_steps: steps of each canvas.
        entropies: mean entropy (nats) after each step, a tuple a canvas.
        stats: what it took.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    denoising_steps: tuple[int, ...]
    entropies: tuple[tuple[float, ...], ...]
    stats: RequestStats


def load_engine(directory: str | Path, threads: int | None = None) -> Engine:
    """Open a bundle and make it ready to generate.

    Args:
        directory: the bundle.
        threads: CPU threads to run on; None for as many as the build found fastest.

    Raises:
        FieldError: when the bundle is missing, damaged, of another contract version, for other hardware, or replaced
            by another while it is read.
    """
    with ExitStack() as stack:
        with unchanged(Path(directory)):
            spec = Bundle.open(directory).spec
            engine = Engine(spec, load_backend(spec), threads)
            stack.callback(engine.close)
        stack.pop_all()
    return engine


class Engine:
    """A loaded bundle. One worker thread runs it; every method may be called from any thread.

    Args:
        spec: limits, sampler, tokenizer.
        backend: what computes it.
        threads: CPU threads to run on; None for as many as the build found fastest.
    """

    def __init__(self, spec: EngineSpec, backend: Backend, threads: int | None = None):
        self.spec = spec
        self.manifest = spec.manifest
        self.limits = spec.limits
        self.sampler = spec.sampler
        self.tokenizer = None if spec.tokenizer_directory is None else Tokenizer(spec.tokenizer_directory)
        self.grammars = Grammars(self.tokenizer, self.limits.vocab_size, spec.arch.eos_token_ids)
        self._backend = backend
        limits = self.limits
        room = limits.context + limits.canvas  # the last canvas may reach past the context
        pages = -(-(limits.cache_tokens or limits.slots * room) // PAGE)
        scheduler = Scheduler(limits.slots, pages, PAGE, backend.prefill_chunk, limits.queue)
        self._worker = Worker(self._backend, scheduler, threads or min(spec.threads, len(available_cpus())))
        atexit.register(self.close)  # a thread inside torch while the interpreter goes down would abort it

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Ticket:
        """Queue a request; returns at once.

        Args:
            request: what to generate.
            on_event: called from the engine's thread with drafts and blocks; the last is a
                :class:`Block` with a finish reason. It must not block.

        Raises:
            FieldError: when the request does not fit the engine's limits.
            QueueFull: when as many requests wait as may wait.
        """
        sequence = self._sequence(request, on_event)
        room = request.room(self.limits.canvas)
        return self._worker.submit(sequence, room, cache_bytes(self.spec.arch, self._backend.dtype, room))

    def submit_read(self, request: ReadRequest, on_event: Callable[[Reading | Block], None]) -> Ticket:
        """Queue a request that reads; returns at once.

        Args:
            request: what to read.
            on_event: as for :meth:`submit`, with a :class:`Reading` for each canvas, in order, before the block.

        Raises:
            FieldError: when the request does not fit the engine's limits, or its backend does not read.
            QueueFull: when as many requests wait as may wait.
        """
        require(
            self._backend.reads_labels,
            field="engine:backend",
            value=self.manifest["backend"],
            allowed="torch_cpu, to read the probabilities of labels",
            fix="build with gpu=cpu",
        )
        sequence = ReadingSequence(request, on_event, self.limits)
        room = request.room
        return self._worker.submit(sequence, room, cache_bytes(self.spec.arch, self._backend.dtype, room))

    def read(
        self, prompt: Prompt, canvases: Sequence[ReadCanvas], seed: int = 0, samples: int = 1, **options: Any
    ) -> list[tuple[Slot, ...]]:
        """How likely each label is at the open positions of canvases: one denoising step each, nothing is written.

        Args:
            prompt: what all canvases come after; encoded once, and kept for a later read with the same one.
            canvases: what is read.
            seed, samples, **options: fields of :class:`ReadRequest`.

        Returns:
            Of each canvas, in order, what was read at each of its open positions. The same to the last bit for the same
            prompt, canvas, seed and samples, whatever else runs and whatever is cached.

        Raises:
            FieldError: on a value that is out of range or does not fit the engine, before anything runs.
            RuntimeError: when it fails while it runs, or runs out of time.
            QueueFull: when other callers' requests fill the queue.
        """
        for name, value in options.items():
            allowed, fix = ", ".join(_READ_OPTIONS), f"remove {name}"
            require(name in _READ_OPTIONS, field=name, value=value, allowed=allowed, fix=fix)
        found: list[Reading | Block] = []
        self.submit_read(ReadRequest(self._ids(prompt), tuple(canvases), seed, samples, **options), found.append).wait()
        last = found.pop()
        assert isinstance(last, Block)
        if last.finish_reason == "unavailable":
            raise QueueFull(last.error)
        if last.finish_reason != "stop":
            raise RuntimeError(last.error or last.finish_reason)
        return [reading.slots for reading in found if isinstance(reading, Reading)]

    def stats(self) -> EngineStats:
        """Totals since the engine was loaded, and what it holds now."""
        return self._worker.stats()

    def progress(self) -> Progress:
        """How far it is, running requests included. Cheap: for asking several times a second."""
        return self._worker.progress()

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_tokens: int = ...,
        seed: int = ...,
        *,
        stream: Literal[False] = ...,
        **sampling: Any,
    ) -> list[Generation]: ...

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_tokens: int = ...,
        seed: int = ...,
        *,
        stream: Literal[True],
        **sampling: Any,
    ) -> Iterator[tuple[int, Event]]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_tokens: int = 256,
        seed: int = 0,
        *,
        stream: bool = False,
        **options: Any,
    ) -> list[Generation] | Iterator[tuple[int, Event]]:
        """Generate for one prompt or several at once.

        Args:
            prompts: a string (tokenised as it stands), a list of token ids, or a list of either.
            max_tokens: most tokens to return a prompt.
            seed: every prompt's seed; its tokens depend on nothing else that runs. (What is reused of an earlier
                request's cache can differ in the last bits from what would be encoded anew, see :class:`Scheduler`.)
            stream: return an iterator of ``(index of the prompt, Draft or Block)`` as they come.
            **options: fields of :class:`SamplerConfig` (the checkpoint's own where not given) and of :class:`Request`
                (``ignore_eos``, ``stop``, ``min_tokens``, ``draft_every``, ``canvas_length``, ``pinned``, ...).

        Raises:
            FieldError: on an unknown or impossible value, before anything runs.
            RuntimeError: when a request fails while it runs.
            QueueFull: when other callers' requests fill the queue.
        """
        sampling = tuple(self.sampler.__dataclass_fields__)
        for name, value in options.items():
            require(
                name in sampling + _OPTIONS,
                field=name,
                value=value,
                allowed=", ".join(sampling + _OPTIONS),
                fix=f"remove {name}",
            )
        sampler = replace(self.sampler, **{n: v for n, v in options.items() if n in sampling})
        rest = {n: v for n, v in options.items() if n not in sampling}
        return self.run(
            [Request(self._ids(p), max_tokens, seed, sampler, **rest) for p in _as_list(prompts)], stream=stream
        )

    @overload
    def run(self, requests: Sequence[Request], *, stream: Literal[False] = ...) -> list[Generation]: ...

    @overload
    def run(self, requests: Sequence[Request], *, stream: Literal[True]) -> Iterator[tuple[int, Event]]: ...

    @overload
    def run(self, requests: Sequence[Request], *, stream: bool) -> list[Generation] | Iterator[tuple[int, Event]]: ...

    def run(
        self, requests: Sequence[Request], *, stream: bool = False
    ) -> list[Generation] | Iterator[tuple[int, Event]]:
        """As :meth:`generate`, for requests that each say all of what they want."""
        for request in requests:
            self._sequence(request, lambda _event: None)  # all are checked before any runs
        events = self._events(requests)
        return events if stream else _collect(events, len(requests))

    def logits(
        self,
        prompt_ids: Sequence[int],
        canvas_ids: Sequence[int],
        previous_logits: Tensor | None = None,
    ) -> Tensor:
        """For checking: soft-capped logits of one canvas after one prompt.

        Args:
            prompt_ids: tokens of the prompt.
            canvas_ids: tokens of the canvas.
            previous_logits: tempered logits ``[canvas, vocab]`` of the previous step, for self-conditioning;
                None at a first step.

        Returns:
            ``[canvas, vocab]`` float32.
        """
        return self._backend.logits(torch.tensor(prompt_ids), torch.tensor(canvas_ids), previous_logits)

    def close(self) -> None:
        """Cancel every request and end the worker."""
        atexit.unregister(self.close)
        self._worker.close()

    def _events(self, requests: Sequence[Request]) -> Iterator[tuple[int, Event]]:
        """Run requests, yield ``(index, event)``; cancel them when not read to the end."""
        inbox: queue.Queue[tuple[int, Event]] = queue.Queue()
        tickets: list[Ticket] = []
        ended = 0

        def receiver(index: int) -> Callable[[Event], None]:
            return lambda event: inbox.put((index, event))

        try:
            while ended < len(requests):
                # one's own requests leave the queue room for others'
                while len(tickets) < min(len(requests), ended + 2 * self.limits.slots):
                    try:
                        tickets.append(self.submit(requests[len(tickets)], receiver(len(tickets))))
                    except QueueFull:
                        if ended == len(tickets):
                            raise
                        break  # the next goes in when one of its own has ended
                index, event = inbox.get()
                if isinstance(event, Block):
                    if event.finish_reason == "error":
                        raise RuntimeError(f"prompt {index}: {event.error}")
                    if event.finish_reason == "unavailable":
                        raise QueueFull(event.error)
                    ended += event.finish_reason is not None
                yield index, event
        finally:
            for ticket in tickets:
                ticket.cancel()

    def _sequence(self, request: Request, on_event: Callable[[Event], None]) -> RunningSequence:
        self._check(request)
        limits = self.limits
        return RunningSequence(
            request,
            on_event,
            self.tokenizer,
            limits.canvas,
            limits.vocab_size,
            self.spec.arch.eos_token_ids,
            None if request.grammar is None else self.grammars.transitions(request.grammar),
        )

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            return tuple(prompt)
        require(
            self.tokenizer is not None,
            field="prompt",
            value=prompt[:40],
            allowed="token ids: this engine has no tokenizer",
            fix="pass a list of token ids, or add the tokenizer's files to the checkpoint and build again",
        )
        assert self.tokenizer is not None
        return tuple(self.tokenizer.encode(prompt))

    def _check(self, request: Request) -> None:
        limits = self.limits
        wrong = [t for t in request.prompt_ids if not 0 <= t < limits.vocab_size]
        require(
            not wrong,
            field="prompt",
            value=wrong[:1],
            allowed=f"token ids from 0 to {limits.vocab_size - 1}",
            fix="use this engine's tokenizer",
        )
        prompt, total = len(request.prompt_ids), len(request.prompt_ids) + request.max_tokens
        require(
            prompt < limits.context,
            field="prompt",
            value=f"{prompt} tokens",
            allowed=f"at most {limits.context - 1} tokens (context {limits.context})",
            fix="shorten the prompt, or build with a larger gpu.limits.context",
        )
        require(
            total <= limits.context,
            field="max_tokens",
            value=request.max_tokens,
            allowed=f"at most {limits.context - prompt} after a prompt of {prompt} tokens (context {limits.context})",
            fix="lower max_tokens, shorten the prompt, or build with a larger gpu.limits.context",
        )
        require(
            self._backend.draws_nuclei or request.top_p in (0, 1),
            field="top_p",
            value=request.top_p,
            allowed="1, or 0: this engine's graph draws from whole distributions",
            fix="leave it out, or lower temperature",
        )
        require(
            self._backend.keeps_forms or request.grammar is None,
            field="grammar",
            value="a grammar",
            allowed="nothing: this engine's backend does not keep answers to a form",
            fix="leave it out, or build with the torch or the cuda backend",
        )
        canvas = request.canvas(limits.canvas)
        require(
            canvas <= limits.canvas,
            field="canvas_length",
            value=canvas,
            allowed=f"at most {limits.canvas}, the model's own",
            fix=f"pass canvas_length={limits.canvas}",
        )
        room = request.room(limits.canvas)
        require(
            limits.cache_tokens is None or room <= limits.cache_tokens,
            field="max_tokens",
            value=request.max_tokens,
            allowed=f"{limits.cache_tokens} tokens of prompt and canvases (gpu.limits.cache_tokens), not {room}",
            fix="lower max_tokens, shorten the prompt, or build with a larger gpu.limits.cache_tokens",
        )


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list."""
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _collect(events: Iterator[tuple[int, Event]], count: int) -> list[Generation]:
    blocks: list[list[Block]] = [[] for _ in range(count)]
    for index, event in events:
        if isinstance(event, Block):
            blocks[index].append(event)
    return [_generation(row) for row in blocks]


def _generation(blocks: Sequence[Block]) -> Generation:
    last = blocks[-1]
    assert last.finish_reason is not None
    assert last.stats is not None
    return Generation(
        text="".join(b.text for b in blocks),
        token_ids=tuple(t for b in blocks for t in b.token_ids),
        finish_reason=last.finish_reason,
        denoising_steps=tuple(b.denoising_steps for b in blocks),
        entropies=tuple(b.entropies for b in blocks),
        stats=last.stats,
    )
