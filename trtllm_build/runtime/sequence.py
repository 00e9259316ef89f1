"""One admitted request: the canvas it is working on and what it has committed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from nemo_diffgemma.diffusion import draws, sampler, stopping
from nemo_diffgemma.diffusion.schedule import temperature
from trtllm_build.network.vocabulary import ReadOut
from trtllm_build.runtime.detokenize import Detokenizer
from trtllm_build.runtime.request import Block, Draft, Event, FinishReason, Request


class Sequence:
    """State of one request in a slot. All of it follows from the request: no randomness of its own.

    Args:
        request: what was asked.
        emit: called with every event.
        detokenizer: text of this request.
        canvas_length: tokens a canvas.
        vocab_size: token ids run from 0 to this, exclusive.
        end_ids: end-of-sequence token ids.
    """

    def __init__(
        self,
        request: Request,
        emit: Callable[[Event], None],
        detokenizer: Detokenizer,
        canvas_length: int,
        vocab_size: int,
        end_ids: Collection[int],
    ):
        self.request = request
        self.emit = emit
        self._detokenizer = detokenizer
        self._length = canvas_length
        self._vocab_size = vocab_size
        self._end_ids = () if request.ignore_eos else tuple(end_ids)
        self._returned = 0
        self.canvas_index = -1

    # -- what the next denoising step takes -------------------------------------------

    def start_canvas(self, soft_embeddings: Tensor) -> None:
        """Begin the next canvas from noise; ``soft_embeddings [canvas, hidden]`` are zeros."""
        self.canvas_index += 1
        self.step = 0
        self.soft_embeddings = soft_embeddings
        self.canvas_ids = draws.uniform_to_token(self._draws(draws.NOISE), self._vocab_size)
        self._history = torch.full((1, self.request.sampler.stability_threshold, self._length), -1)
        self._entropies: list[float] = []

    @property
    def temperature(self) -> float:
        """Temperature of the next step."""
        s = self.request.sampler
        return temperature(s.max_denoising_steps - self.step, s.max_denoising_steps, s.t_min, s.t_max)

    def sample_draws(self) -> Tensor:
        """Uniforms ``[canvas]`` for sampling in the next step."""
        return self._draws(draws.SAMPLE, self.step + 1)

    def _draws(self, purpose: int, step: int = draws.INITIAL_STEP) -> Tensor:
        return draws.uniforms(self.request.seed, self.canvas_index, step, purpose, self._length)

    # -- what a denoising step gave ---------------------------------------------------

    def advance(self, result: ReadOut) -> bool:
        """Take one step's result. True when the canvas is finished."""
        s = self.request.sampler
        self.step += 1
        mean_entropy = float(result.entropy.mean())
        if not math.isfinite(mean_entropy):
            raise FloatingPointError(f"NaN or infinity in canvas {self.canvas_index}, denoising step {self.step}")
        self._entropies.append(mean_entropy)
        self._argmax_ids = result.argmax_ids.tolist()
        stable = bool(stopping.stable(self._history, result.argmax_ids[None]))
        confident = bool(stopping.confident(result.entropy[None], s.confidence_threshold))
        self._history = stopping.push(self._history, result.argmax_ids[None])
        accepted = sampler.accept(result.entropy[None], s.entropy_bound)[0]
        noise = self._draws(draws.NOISE, self.step)
        self.canvas_ids = sampler.renoise(result.sampled_ids, accepted, noise, self._vocab_size)
        self.soft_embeddings = result.soft_embeddings
        if self.request.drafts:
            ids = tuple(self._cut()[0])
            text = self._detokenizer.preview(ids)
            self.emit(Draft(self.canvas_index, self.step, ids, text, mean_entropy))
        return (stable and confident) or self.step == s.max_denoising_steps

    def commit(self) -> Tensor | None:
        """Emit the finished canvas. Returns its tokens ``[canvas]`` to encode, or None when the request is done."""
        ids, reason = self._cut()
        self._returned += len(ids)
        text = self._detokenizer.push(ids, last=reason is not None)
        self.emit(Block(self.canvas_index, tuple(ids), text, self.step, tuple(self._entropies), reason))
        return torch.tensor(self._argmax_ids) if reason is None else None

    def end(self, reason: FinishReason, error: str | None = None) -> None:
        """Emit a last block without tokens: the request was cancelled or failed."""
        text = self._detokenizer.push((), last=True)
        self.emit(Block(max(self.canvas_index, 0), (), text, 0, (), reason, error))

    def _cut(self) -> tuple[list[int], FinishReason | None]:
        """The argmax canvas up to its end of sequence or to ``max_tokens``, and why it ends there."""
        room = self.request.max_tokens - self._returned
        end = stopping.text_length(self._argmax_ids, self._end_ids)
        if end is not None and end < room:
            return self._argmax_ids[:end], "stop"
        return self._argmax_ids[:room], "length" if room <= self._length else None
