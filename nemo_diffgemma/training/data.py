"""Conversations from JSONL to token ids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.tokenizer import END_OF_TURN, Message, Tokenizer

ROLES = ("system", "user", "assistant")
_FORM = 'one JSON object a line: {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}'


@dataclass(frozen=True)
class Example:
    """One conversation as token ids.

    ``response`` is the last assistant turn with its end-of-turn token, filled with end of sequence to a whole number
    of canvases: all of it is supervised, so the model also learns where an answer stops.
    """

    prompt: list[int]
    response: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def read_conversations(path: Path) -> list[list[Message]]:
    """The ``messages`` of every line of a JSONL file; empty lines are skipped.

    Raises:
        FieldError: naming file, line and field, when a line is not a conversation that ends with the assistant.
    """
    conversations = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                conversations.append(_messages(f"{path}:{number}", line))
    require(bool(conversations), str(path), "no line", "at least one conversation", f"write {_FORM}")
    return conversations


def _messages(where: str, line: str) -> list[Message]:
    remedy = f"write {_FORM}"
    try:
        record = json.loads(line.strip())
    except json.JSONDecodeError as error:
        raise FieldError(where, f"{error.msg} at column {error.colno}", "a JSON object", remedy) from None
    require(isinstance(record, dict), where, record, "a JSON object", remedy)
    messages = record.get("messages")
    require(isinstance(messages, list) and len(messages) >= 2, f"{where}: messages", messages, "2 or more", remedy)
    for index, message in enumerate(messages):
        field = f"{where}: messages[{index}]"
        require(isinstance(message, dict), field, message, "an object with role and content", remedy)
        role, content = message.get("role"), message.get("content")
        require(role in ROLES, f"{field}.role", role, ", ".join(ROLES), "correct the role")
        require(isinstance(content, str) and content != "", f"{field}.content", content, "text", "write the content")
    last: Any = messages[-1]["role"]
    require(last == "assistant", f"{where}: messages[-1].role", last, "assistant", "end with the answer to learn")
    return list(messages)


def encode_conversation(
    messages: list[Message], tokenizer: Tokenizer, canvas: int, end: int, max_tokens: int, where: str
) -> Example:
    """Token ids of one conversation, cut from the left at message borders to ``max_tokens``.

    Args:
        messages: ends with the assistant's turn.
        canvas: canvas length in tokens.
        end: the token that fills the last canvas.
        where: how errors name this conversation.

    Raises:
        FieldError: when the last question and its answer alone do not fit ``max_tokens``.
    """
    answer = tokenizer.encode(str(messages[-1]["content"]) + END_OF_TURN)
    response = answer + [end] * (-len(answer) % canvas)
    system = [m for m in messages[:1] if m["role"] == "system"]
    history = messages[len(system) : -1]
    while True:
        prompt = tokenizer.chat([*system, *history], add_generation_prompt=True)
        if len(prompt) + len(response) <= max_tokens:
            return Example(prompt, response)
        length = len(prompt) + len(response)
        require(len(history) > 1, where, f"{length} tokens", f"at most data.max_tokens {max_tokens}", "raise it")
        # a template may demand that a conversation starts with the user: drop whole exchanges
        history = history[1:]
        while len(history) > 1 and history[0]["role"] != "user":
            history = history[1:]


def load_examples(path: Path, tokenizer: Tokenizer, canvas: int, end: int, max_tokens: int) -> list[Example]:
    """Every conversation of a JSONL file as token ids.

    Raises:
        FieldError: see :func:`read_conversations` and :func:`encode_conversation`.
    """
    return [
        encode_conversation(messages, tokenizer, canvas, end, max_tokens, f"{path}: conversation {number}")
        for number, messages in enumerate(read_conversations(path), 1)
    ]
