"""The engine object: load a bundle, generate."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from nemo_diffgemma.errors import require
from nemo_diffgemma.tokenizer import Tokenizer
from trtllm_build.backends.torch_cpu import TorchCpu
from trtllm_build.bundle import Bundle
from trtllm_build.runtime.detokenize import Detokenizer
from trtllm_build.runtime.request import Block, Event, FinishReason, Request
from trtllm_build.runtime.sequence import Sequence as RunningSequence
from trtllm_build.runtime.worker import Ticket, Worker

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Generation:
    """A finished request.

    Args:
        text: decoded tokens; empty for an engine without a tokenizer.
        token_ids: returned tokens, without end of sequence and padding.
        finish_reason: why it ended.
        denoising_steps: steps of each canvas.
        entropies: mean entropy (nats) after each step, a tuple a canvas.
        time_to_first_block: seconds from submission to the first committed block.
        seconds: from submission to the last event.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    denoising_steps: tuple[int, ...]
    entropies: tuple[tuple[float, ...], ...]
    time_to_first_block: float
    seconds: float


def load_engine(directory: str | Path) -> Engine:
    """Open a bundle and make it ready to generate.

    Raises:
        FieldError: when the bundle is missing, damaged, of another contract version, or for other hardware.
    """
    return Engine(Bundle.open(directory))


class Engine:
    """A loaded bundle. One worker thread runs it; every method may be called from any thread."""

    def __init__(self, bundle: Bundle):
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.limits = bundle.limits
        self.sampler = bundle.sampler
        self.tokenizer = None if bundle.tokenizer_directory is None else Tokenizer(bundle.tokenizer_directory)
        self._backend = TorchCpu.load(bundle)
        self._worker = Worker(self._backend, self.limits.slots, self.limits.canvas)

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Ticket:
        """Queue a request; returns at once.

        Args:
            request: what to generate.
            on_event: called from the engine's thread with drafts and blocks; the last is a
                :class:`Block` with a finish reason. It must not block.

        Raises:
            FieldError: when the request does not fit the engine's limits.
        """
        self._check(request)
        sequence = RunningSequence(
            request,
            on_event,
            Detokenizer(self.tokenizer),
            self.limits.canvas,
            self.limits.vocab_size,
            self.bundle.arch.eos_token_ids,
        )
        return self._worker.submit(sequence)

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
        ignore_eos: bool = False,
        stream: bool = False,
        drafts: bool = False,
        **sampling: Any,
    ) -> list[Generation] | Iterator[tuple[int, Event]]:
        """Generate for one prompt or several at once.

        Args:
            prompts: a string (tokenised as it stands), a list of token ids, or a list of either.
            max_tokens: most tokens to return a prompt.
            seed: every prompt's seed; its tokens depend on nothing else that runs.
            ignore_eos: go on to ``max_tokens`` whatever the model writes.
            stream: return an iterator of ``(index of the prompt, Draft or Block)`` as they come.
            drafts: with ``stream``, also every step's provisional canvas.
            **sampling: ``max_denoising_steps``, ``t_min``, ``t_max``, ``entropy_bound``,
                ``confidence_threshold``, ``stability_threshold``; the checkpoint's own where not given.

        Raises:
            FieldError: on an unknown or impossible value, before anything runs.
            RuntimeError: when a request fails while it runs.
        """
        names = list(self.sampler.__dataclass_fields__)
        for name, value in sampling.items():
            require(name in names, name, value, ", ".join(names), f"remove {name}")
        sampler = replace(self.sampler, **sampling)
        requests = [Request(self._ids(p), max_tokens, seed, sampler, ignore_eos, drafts) for p in _as_list(prompts)]
        for request in requests:
            self._check(request)
        events = self._events(requests)
        return ((index, event) for index, event, _ in events) if stream else _collect(events, len(requests))

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
        self._worker.close()

    def _events(self, requests: list[Request]) -> Iterator[tuple[int, Event, float]]:
        """Run requests, yield ``(index, event, seconds since submission)``; cancel them when not read to the end."""
        inbox: queue.Queue[tuple[int, Event, float]] = queue.Queue()
        start = time.perf_counter()

        def receiver(index: int) -> Callable[[Event], None]:
            return lambda event: inbox.put((index, event, time.perf_counter() - start))

        tickets = [self.submit(request, receiver(index)) for index, request in enumerate(requests)]
        try:
            remaining = len(requests)
            while remaining:
                index, event, seconds = inbox.get()
                if isinstance(event, Block):
                    if event.finish_reason == "error":
                        raise RuntimeError(f"prompt {index}: {event.error}")
                    remaining -= event.finish_reason is not None
                yield index, event, seconds
        finally:
            for ticket in tickets:
                ticket.cancel()

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            return tuple(prompt)
        require(
            self.tokenizer is not None,
            "prompt",
            prompt[:40],
            "token ids: this engine has no tokenizer",
            "pass a list of token ids, or add the tokenizer's files to the checkpoint and build again",
        )
        assert self.tokenizer is not None
        return tuple(self.tokenizer.encode(prompt))

    def _check(self, request: Request) -> None:
        limits = self.limits
        wrong = [t for t in request.prompt_ids if not 0 <= t < limits.vocab_size]
        require(
            not wrong,
            "prompt",
            wrong[:1],
            f"token ids from 0 to {limits.vocab_size - 1}",
            "use this engine's tokenizer",
        )
        prompt, total = len(request.prompt_ids), len(request.prompt_ids) + request.max_tokens
        require(
            prompt < limits.context,
            "prompt",
            f"{prompt} tokens",
            f"at most {limits.context - 1} tokens (context {limits.context})",
            "shorten the prompt, or build with a larger gpu.limits.context",
        )
        require(
            total <= limits.context,
            "max_tokens",
            request.max_tokens,
            f"at most {limits.context - prompt} after a prompt of {prompt} tokens (context {limits.context})",
            "lower max_tokens, shorten the prompt, or build with a larger gpu.limits.context",
        )


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list."""
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _collect(events: Iterator[tuple[int, Event, float]], count: int) -> list[Generation]:
    blocks: list[list[tuple[Block, float]]] = [[] for _ in range(count)]
    for index, event, seconds in events:
        if isinstance(event, Block):
            blocks[index].append((event, seconds))
    return [
        Generation(
            text="".join(b.text for b, _ in row),
            token_ids=tuple(t for b, _ in row for t in b.token_ids),
            finish_reason=row[-1][0].finish_reason or "error",
            denoising_steps=tuple(b.denoising_steps for b, _ in row),
            entropies=tuple(b.entropies for b, _ in row),
            time_to_first_block=row[0][1],
            seconds=row[-1][1],
        )
        for row in blocks
    ]
