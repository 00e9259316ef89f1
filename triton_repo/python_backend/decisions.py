"""Requests with questions: what is asked of the engine, and the answers that go back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nemo_diffgemma.decisions import Question, parse_questions
from nemo_diffgemma.errors import FieldError, require
from triton_repo.python_backend.parameters import TIMEOUT, check_parameters
from triton_repo.python_backend.parse import aliased, deadline, scalar, traceparent, values
from triton_repo.python_backend.prompt import Decisions, Prompt, Room, TokenIds, messages_of
from triton_repo.tensors import ALL_OUTPUTS, DECIDE_INPUTS
from trtllm_build.decisions.answers import Temperatures, answer_all
from trtllm_build.decisions.layout import ORDERS, Layout, Layouts, Order
from trtllm_build.runtime.read import ReadCanvas, Reading, ReadRequest
from trtllm_build.runtime.request import Block, Event

if TYPE_CHECKING:
    from trtllm_build.runtime.process import EngineProcess

_NOTHING = ReadCanvas((), (None,), (((0,), (1,)),))  # stands for what is not read yet
_NEITHER = ("stream",)  # what clients send of every model, and means nothing here while it is false


@dataclass(frozen=True)
class DecisionManner:
    """How questions are answered.

    Args:
        questions: what was asked.
        temperatures: that were fitted for this engine; None without.
        layout: of the canvases that are read; None while the prompt is not read.
    """

    questions: tuple[Question, ...]
    temperatures: Temperatures | None
    layout: Layout | None = None


@dataclass(frozen=True)
class DecisionRequest:
    """A parsed request.

    Args:
        request: what the engine is asked.
        manner: how it is to be answered.
    """

    request: ReadRequest
    manner: DecisionManner


@dataclass(frozen=True)
class DecisionsAsked:
    """A request whose prompt is not read yet. All else that it asks for has been looked at.

    Args:
        prompt: to be read.
        manner: how it is to be answered.
        traceparent: W3C trace context of the caller; None where it sent none.
        request: what the engine is asked, but for prompt and canvases.
    """

    prompt: Prompt
    manner: DecisionManner
    traceparent: str | None
    request: ReadRequest

    def finish(self, ids: TokenIds, _context: int) -> DecisionRequest:
        """The request, once its prompt is read."""
        layout = ids.layout
        assert layout is not None, "questions are laid out where they are read"
        request = replace(self.request, prompt_ids=layout.prompt_ids, canvases=layout.canvases)
        return DecisionRequest(request, replace(self.manner, layout=layout))


def ask_decisions(
    arrays: Mapping[str, Any],
    parameters: Mapping[str, object],
    engine: EngineProcess,
    room: Room,
    temperatures: Temperatures | None,
) -> DecisionsAsked:
    """Look at everything but the prompt, of which only the size.

    Args:
        arrays, parameters, engine, room: as in :func:`triton_repo.python_backend.parse.ask`.
        temperatures: that were fitted for this engine; None without.

    Raises:
        FieldError: for the first thing that cannot be honoured.
    """
    check_parameters(parameters)
    for name, array in arrays.items():
        unused = name in _NEITHER and not np.asarray(array).any()
        require(
            name in DECIDE_INPUTS or unused,
            field=name,
            value="an input",
            allowed=f"with questions no others than {', '.join(DECIDE_INPUTS)}: nothing is generated",
            fix=f"leave out {name}, or questions",
        )
    inputs = {name: values(name, array) for name, array in arrays.items() if name in DECIDE_INPUTS}
    questions = parse_questions(_json(inputs["questions"][0]))
    order: Order = scalar(inputs, "order", "given")
    require(order in ORDERS, field="order", value=order, allowed=" or ".join(ORDERS), fix="leave it out")
    given = [name for name in ("text_input", "messages") if name in inputs]
    require(
        len(given) == 1,
        field="prompt",
        value=" and ".join(given) or "none of them",
        allowed="exactly one of text_input and messages",
        fix="send one of them",
    )
    require(
        engine.tokenizer is not None,
        field="questions",
        value=f"{len(questions)} questions",
        allowed="nothing: this engine has no tokenizer",
        fix="add the tokenizer's files to the checkpoint and build again",
    )
    decisions = Decisions(questions, order, bool(scalar(inputs, "joint", False)))
    prompt = Prompt(given[0], inputs[given[0]][0], decisions=decisions)
    room.check_unread(prompt)
    request = ReadRequest(
        prompt_ids=(0,),
        canvases=(_NOTHING,),
        seed=aliased(inputs, "seed", "random_seed"),
        samples=scalar(inputs, "samples", 1),
        priority=scalar(inputs, "priority", 0),
        client=scalar(inputs, "client", ""),
        cache_salt=scalar(inputs, "cache_salt", ""),
        deadline=deadline(scalar(inputs, "deadline", None), parameters.get(TIMEOUT)),
    )
    return DecisionsAsked(prompt, DecisionManner(questions, temperatures), traceparent(inputs), request)


def lay_out(
    prompt: Prompt,
    layouts: Layouts,
    room: Room,
    rendering: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> TokenIds:
    """Read a prompt with questions.

    Args:
        prompt: what to read.
        layouts: of the engine that will answer.
        room: what may fit.
        rendering: entered while the checkpoint's chat template runs.

    Raises:
        FieldError: for messages that are none, that the template cannot render, or that cannot fit, and for options
            that cannot be told apart.
    """
    asked = prompt.decisions
    assert asked is not None
    text = str(prompt.value)
    messages = messages_of(text) if prompt.name == "messages" else [{"role": "user", "content": text}]
    room.check(prompt.name, sum(len(message["content"].encode()) for message in messages))
    try:
        with rendering():
            layout = layouts.layout(messages, asked.questions, asked.order, asked.joint)
    except RecursionError as error:
        allowed = "messages that are not nested so deep"
        raise FieldError("messages", f"{len(text)} characters", allowed, "flatten them") from error
    return TokenIds(layout.prompt_ids, layout=layout)


class DecisionReply:
    """The one response to questions. Not thread-safe: one thread feeds it."""

    def __init__(self, manner: DecisionManner):
        self._manner = manner
        self._read: list[Reading] = []
        self.tokens = 0

    def outputs(self, event: Event | Reading) -> dict[str, Any] | None:
        """Output tensors by name, numpy, shape ``[1, *dims]``; None before the last event."""
        if isinstance(event, Reading):
            self._read.append(event)
            self.tokens += len(event.slots)
            return None
        assert isinstance(event, Block)
        manner, layout = self._manner, self._manner.layout
        answers: list[dict[str, Any]] = []
        if event.finish_reason == "stop" and layout is not None:
            slots = [reading.slots for reading in self._read]
            answers = answer_all(manner.questions, layout.parts, slots, manner.temperatures)
        found: dict[str, Any] = {
            "answers": json.dumps(answers).encode(),
            "finish_reason": (event.finish_reason or "").encode(),
            "num_input_tokens": 0 if layout is None else _input_tokens(layout),
            "num_output_tokens": self.tokens,
            "num_cached_tokens": event.stats.reused_tokens if event.stats else 0,
        }
        kinds: dict[str, Any] = {"STRING": np.object_, "INT32": np.int32}
        return {name: np.array([[value]], dtype=kinds[ALL_OUTPUTS[name].dtype]) for name, value in found.items()}


def _input_tokens(layout: Layout) -> int:
    return len(layout.prompt_ids) + sum(len(canvas.token_ids) for canvas in layout.canvases)


def _json(text: str) -> Any:
    shape = 'a JSON list like [{"type": "predicate", "instructions": "..."}]'
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FieldError(field="questions", value=text, allowed=shape, fix=f"correct the JSON: {error}") from error
