"""From the engine's events to the tensors of a Triton response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from triton_repo.python_backend.calls import Calls
from triton_repo.python_backend.parse import Manner
from triton_repo.tensors import ALL_OUTPUTS, DType
from trtllm_build.runtime.read import Reading
from trtllm_build.runtime.request import Block, Draft, Event

_NUMPY: dict[DType, Any] = {
    "STRING": np.object_,
    "BOOL": np.bool_,
    "INT32": np.int32,
    "UINT64": np.uint64,
    "FP32": np.float32,
}

Outputs = dict[str, Any]


class Reply:
    """The responses of one generation, in order. Not thread-safe: one thread feeds it."""

    def __init__(self, manner: Manner):
        self._manner = manner
        self._blocks: list[Block] = []
        self._calls = None if manner.tools is None else Calls(manner.tools, manner.decode)
        self.tokens = 0  # committed so far, as the client is told

    def outputs(self, event: Event | Reading) -> Outputs | None:
        """Output tensors by name, numpy, shape ``[1, *dims]``; None when this event is not sent on its own."""
        assert not isinstance(event, Reading), "of questions, which have a reply of their own"
        if isinstance(event, Draft):
            text = event.text if self._calls is None else self._calls.draft(event.token_ids, event.text)
            return self._pack(text, event.token_ids, event.canvas_index, event.step, event.entropy, (), True, "", None)
        self.tokens += len(event.token_ids)
        if self._manner.stream:
            return self._blocks_as_one([event])
        self._blocks.append(event)
        return self._blocks_as_one(self._blocks) if event.finish_reason else None

    def _blocks_as_one(self, blocks: list[Block]) -> Outputs:
        last = blocks[-1]
        parts = [(block.text, list[str]()) if self._calls is None else self._calls.add(block) for block in blocks]
        text = "".join(part for part, _ in parts)
        ids = tuple(token for block in blocks for token in block.token_ids)
        reason = last.finish_reason or ""
        gap = self._manner.gap
        if gap is not None and len(ids) >= gap:
            ids, reason = ids[:gap], "length"
            text = self._manner.decode(ids)
            self.tokens = gap
        return self._pack(
            text,
            ids,
            last.canvas_index,
            sum(block.denoising_steps for block in blocks),
            last.entropies[-1] if last.entropies else None,
            [block.entropies for block in blocks if block.entropies],
            False,
            reason,
            last.stats.reused_tokens if last.stats else None,
            [block.log_z for block in blocks if block.log_z is not None],
            [call for _, calls in parts for call in calls],
        )

    def _pack(
        self,
        text: str,
        ids: tuple[int, ...],
        canvas: int,
        steps: int,
        entropy: float | None,
        canvases: Sequence[Sequence[float]],
        draft: bool,
        reason: str,
        cached: int | None,
        forms: Sequence[float] = (),
        calls: Sequence[str] = (),
    ) -> Outputs:
        values: dict[str, list[Any]] = {
            "text_output": [text.encode()],
            "output_ids": list(ids),
            "finish_reason": [reason.encode()],
            "provisional": [draft],
            "canvas_index": [canvas],
            "denoising_steps": [steps],
            "max_tokens": [self._manner.max_tokens],
            "canvas_steps": [len(entropies) for entropies in canvases],
            "step_entropies": [entropy for entropies in canvases for entropy in entropies],
            "entropy": [entropy],
            "num_input_tokens": [self._manner.prompt_tokens],
            "num_cached_tokens": [cached],
            "form_log_probability": list(forms),
            "tool_calls": [call.encode() for call in calls],
            "num_output_tokens": [self.tokens],
        }
        for name in ("entropy", "num_cached_tokens"):
            if values[name] == [None]:
                del values[name]
        if not forms:
            del values["form_log_probability"]
        if not calls:
            del values["tool_calls"]
        if not canvases:
            del values["canvas_steps"], values["step_entropies"]
        return {
            name: np.array([value], dtype=_NUMPY[ALL_OUTPUTS[name].dtype])
            for name, value in values.items()
            if name not in self._manner.withheld
        }
