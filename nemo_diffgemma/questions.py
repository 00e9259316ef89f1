"""Held-out conversations with one right answer each: what a model's quality is measured by."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from nemo_diffgemma.chat import Message
from nemo_diffgemma.conversations.reader import Reader
from nemo_diffgemma.conversations.record import Record
from nemo_diffgemma.errors import require


@dataclass(frozen=True)
class Question:
    """A held-out conversation: what is asked, and the one right answer."""

    messages: tuple[Message, ...]
    answer: str
    tools: tuple[Record, ...] = ()
    where: str = field(default="", compare=False)
    """Its file and line, as errors name them."""

    @property
    def prompt(self) -> str:
        """The last thing the user said."""
        return str(self.messages[-1]["content"])


def read_questions(path: Path, limit: int | None = None, key: str = "questions") -> list[Question]:
    """The first ``limit`` conversations of a file, or all, the last message of each being the answer.

    Any file that training takes is taken, see :mod:`nemo_diffgemma.conversations`.

    Args:
        path: of the file.
        limit: how many to read; None for all.
        key: how the user named the file.

    Raises:
        FieldError: when the file is missing or no such file, or what is read of it has a line that is no conversation.
    """
    require(
        path.is_file(),
        field=key,
        value=str(path),
        allowed="a JSONL file of conversations",
        fix="name one that exists",
    )
    reader = Reader([path], key)
    found = [Question(c.asked, c.answer, c.tools, c.where) for c in islice(reader, limit)]
    reader.faults.check()
    return found
