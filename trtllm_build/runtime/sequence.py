"""One request: the canvas it is working on and what it has committed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from nemo_diffgemma.diffusion import draws, sampler, stopping
from nemo_diffgemma.diffusion.schedule import temperature
from nemo_diffgemma.tokenizer import Tokenizer
from trtllm_build.contract import CanvasStep, ReadOut
from trtllm_build.grammar.transitions import Transitions
from trtllm_build.runtime.detokenize import Detokenizer
from trtllm_build.runtime.form import Form
from trtllm_build.runtime.request import Block, CanvasTimes, Draft, Event, FinishReason, Request, RequestStats
from trtllm_build.runtime.rules import Rules


class RunningSequence:
    """State of one request. All of it follows from the request: no randomness of its own.

    Args:
        request: what was asked.
        emit: called with every event.
        tokenizer: for its texts; None for an engine without one.
        canvas_length: tokens per canvas of the engine.
        vocab_size: token ids run from 0 to this, exclusive.
        eos_ids: end-of-sequence token ids.
        transitions: the request's grammar; None for a request without one.

    Raises:
        FieldError: on stop strings without a tokenizer, on token ids that are none, and on a grammar whose shortest
            answer is longer than ``max_tokens``.
    """

    def __init__(
        self,
        request: Request,
        emit: Callable[[Event], None],
        tokenizer: Tokenizer | None,
        canvas_length: int,
        vocab_size: int,
        eos_ids: Collection[int],
        transitions: Transitions | None = None,
    ):
        self.request = request
        self.emit = emit
        self._detokenizer = Detokenizer(tokenizer, request.stop)
        self._length = request.canvas(canvas_length)
        self._end_ids = frozenset((() if request.ignore_eos else tuple(eos_ids)) + tuple(request.stop_token_ids))
        self._rules = Rules(request, self._length, vocab_size, self._end_ids)
        self._form = None if transitions is None else Form(transitions, request.max_tokens)
        self._returned = 0
        self._on_canvas = False
        self._step = 0
        self._converged = False
        self.canvas_started = 0.0  # of the canvas under way, or the last one; seconds of time.monotonic
        self.canvas_index = -1
        self.tokens = 0  # returned
        self.steps = 0  # of all canvases
        self.accepted = 0  # positions, over all steps

    def next_step(self, slot: int) -> CanvasStep:
        """What the backend needs for the next denoising step; begins a canvas where none is under way."""
        if not self._on_canvas:
            self._start_canvas()
        s = self.request.sampler
        remaining = s.max_denoising_steps - self._step
        return CanvasStep(
            slot,
            self._canvas_ids,
            self._soft_embeddings,
            temperature(remaining, s.max_denoising_steps, s.t_min, s.t_max),
            self._draws(draws.SAMPLE, self._step + 1),
            soft=remaining > 1,
            choices=self._choices,
            sampling=self.request.sampling,
            constraint=self._constraint,
        )

    def _start_canvas(self) -> None:
        self._on_canvas = True
        self.canvas_started = time.monotonic()
        self.canvas_index += 1
        self._step = 0
        self._converged = False
        self._choices = self._rules.choices(self.canvas_index)
        self._constraint = None if self._form is None else self._form.constraint(self._length)
        self._log_z: float | None = None
        self._canvas_ids = self._rules.start(self.canvas_index, self._choices, self._draws(draws.NOISE))
        self._soft_embeddings: Tensor | None = None
        self._argmax_ids: list[int] = []
        self._steady = 0
        self._entropies: list[float] = []

    def _draws(self, purpose: int, step: int = draws.INITIAL_STEP) -> Tensor:
        return draws.uniforms(self.request.seed, self.canvas_index, step, purpose, self._length)

    def advance(self, result: ReadOut) -> bool:
        """Take one step's result. True when the canvas is finished.

        Raises:
            FloatingPointError: when an entropy is not finite.
        """
        s = self.request.sampler
        self._step += 1
        self.steps += 1
        mean_entropy = float(result.entropy.mean())
        if not math.isfinite(mean_entropy):
            raise FloatingPointError(f"NaN or infinity in canvas {self.canvas_index}, denoising step {self._step}")
        self._entropies.append(mean_entropy)
        before, self._argmax_ids = self._argmax_ids, result.argmax_ids.tolist()
        self._steady = stopping.steady(self._steady, before, self._argmax_ids)
        stable = self._steady >= s.stability_threshold
        confident = bool(stopping.confident(result.entropy[None], s.confidence_threshold))
        self._converged = stable and confident
        accepted = sampler.accept(result.entropy[None], s.entropy_bound)[0]
        self.accepted += int(accepted.sum())
        noise = self._rules.noise(self._choices, self._draws(draws.NOISE, self._step))
        self._canvas_ids = torch.where(accepted, result.sampled_ids, noise)
        self._soft_embeddings = result.soft_embeddings
        self._log_z = result.log_z
        if self.request.draft_every and self._step % self.request.draft_every == 0:
            ids = tuple(self._cut()[0])
            text = self._detokenizer.preview(ids)
            self.emit(Draft(self.canvas_index, self._step, ids, text, mean_entropy))
        return self._converged or self._step == s.max_denoising_steps

    def canvas_times(self, ended: float) -> CanvasTimes | None:
        """Of the canvas under way, which ends now, finished or not; None when there is none."""
        if not self._on_canvas:
            return None
        done = self._converged or self._step == self.request.sampler.max_denoising_steps
        return CanvasTimes(self.canvas_started, ended, None, self._step, done, self._converged)

    def commit(self, stats: Callable[[], RequestStats], seconds: float) -> tuple[Block, tuple[int, ...] | None]:
        """The finished canvas, and its tokens, which are to be encoded; None when the request is done.

        ``seconds`` are those since the block before.
        """
        self._on_canvas = False
        ids, reason = self._cut()
        if self._form is not None:
            self._form.commit(self._argmax_ids)
            if reason == "length" and self._form.complete:
                reason = "stop"  # the whole answer, and not a token too many
        self._returned += len(ids)
        piece = self._detokenizer.push(ids, last=reason is not None)
        if piece.stopped:
            reason = "stop"
        self.tokens += len(piece.token_ids)
        end = None if reason is None else stats()
        entropies = tuple(self._entropies)
        block = Block(
            self.canvas_index,
            piece.token_ids,
            piece.text,
            self._step,
            entropies,
            reason,
            stats=end,
            converged=self._converged,
            log_z=self._log_z,
            seconds=seconds,
        )
        return block, tuple(self._argmax_ids) if reason is None else None

    def end(self, reason: FinishReason, stats: RequestStats, error: str | None = None) -> Block:
        """A last block, of what was held back: the request was cancelled, is late, or failed."""
        piece = self._detokenizer.push((), last=True)
        self.tokens += len(piece.token_ids)
        index = max(self.canvas_index, 0)
        return Block(index, piece.token_ids, piece.text, 0, (), reason, error, stats)

    def _cut(self) -> tuple[list[int], FinishReason | None]:
        """The argmax canvas up to its end of sequence or to ``max_tokens``, and why it ends there."""
        room = self.request.max_tokens - self._returned
        end = stopping.text_length(self._argmax_ids, self._end_ids)
        if end is not None and end < room:
            return self._argmax_ids[:end], "stop"
        return self._argmax_ids[:room], "length" if room <= self._length else None
