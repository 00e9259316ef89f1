"""Held-out conversations with one right answer each: what a model's quality is measured by."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.tokenizer import Message


@dataclass(frozen=True)
class Question:
    """A held-out conversation: what is asked, and the one right answer."""

    messages: tuple[Message, ...]
    answer: str

    @property
    def prompt(self) -> str:
        """The last thing the user said."""
        return str(self.messages[-1]["content"])


def read_questions(path: Path) -> list[Question]:
    """Chat JSONL, the last message of each conversation being the answer.

    Raises:
        FieldError: when the file is missing, or a line is not such a conversation.
    """
    if not path.is_file():
        raise FieldError("questions", str(path), "a JSONL file of conversations", "name one that exists")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            *asked, answer = json.loads(line)["messages"]
            found.append(Question(tuple(asked), answer["content"]))
        except (ValueError, KeyError, TypeError) as error:
            allowed = '{"messages": [..., {"role": "assistant", "content": ...}]}'
            raise FieldError(
                f"{path.name}:{number}", f"{type(error).__name__}: {error}", allowed, "correct that line"
            ) from None
    return found
