"""Questions to an engine in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_diffgemma.chat import Message
from nemo_diffgemma.decisions import parse_questions
from nemo_diffgemma.errors import require
from trtllm_build.decisions.answers import answer_all
from trtllm_build.decisions.calibration import read_calibration
from trtllm_build.decisions.layout import Layouts, Order
from trtllm_build.runtime.engine import Engine


def decide(
    engine: Engine,
    input: str | Sequence[Message],
    questions: Sequence[Mapping[str, Any]],
    *,
    order: Order = "given",
    joint: bool = False,
    seed: int = 0,
    samples: int = 1,
    **options: Any,
) -> list[dict[str, Any]]:
    """Answers to questions about a text or a conversation, with probabilities.

    Args:
        engine: with a tokenizer and a chat template.
        input: what the questions are about; it is encoded once, and kept for later questions about it.
        questions: as :func:`nemo_diffgemma.decisions.parse_questions` takes them.
        order, joint: as in :meth:`trtllm_build.decisions.layout.Layouts.layout`.
        seed, samples, **options: as in :meth:`Engine.read`.

    Returns:
        As :func:`trtllm_build.decisions.answers.answer_all`, in the order of the questions.

    Raises:
        FieldError: for what cannot be asked, before anything runs.
        RuntimeError, QueueFull: as :meth:`Engine.read`.
    """
    asked = parse_questions(questions)
    messages = _conversation(input)
    require(
        engine.tokenizer is not None,
        field="input",
        value="a text",
        allowed="nothing: this engine has no tokenizer",
        fix="add the tokenizer's files to the checkpoint and build again",
    )
    assert engine.tokenizer is not None
    layouts = Layouts(engine.tokenizer, engine.limits.canvas, engine.spec.arch.eos_token_ids[0])
    layout = layouts.layout(messages, asked, order, joint)
    slots = engine.read(layout.prompt_ids, layout.canvases, seed, samples, **options)
    return answer_all(asked, layout.parts, slots, read_calibration(engine.spec.directory))


_ROLES = ("system", "user", "assistant")


def _conversation(input: object) -> list[Message]:
    """A text or a conversation as messages."""
    messages = [{"role": "user", "content": input}] if isinstance(input, str) else input
    fix = 'pass a text, or [{"role": "user", "content": "..."}]'
    good = isinstance(messages, list | tuple) and len(messages) > 0
    require(good, field="input", value=input, allowed="a text, or a list of at least one message", fix=fix)
    assert isinstance(messages, list | tuple)
    for i, message in enumerate(messages):
        where = "input" if isinstance(input, str) else f"input[{i}]"
        good = isinstance(message, dict) and message.keys() == {"role", "content"} and message["role"] in _ROLES
        allowed = f"an object of role ({', '.join(_ROLES)}) and content, and no more"
        require(good, field=where, value=message, allowed=allowed, fix=fix)
        text = message["content"]
        good = isinstance(text, str) and text == text.encode(errors="ignore").decode()
        where = where if isinstance(input, str) else f"{where}.content"
        require(good, field=where, value=text, allowed="a text that UTF-8 can write", fix="correct it")
    return list(messages)
