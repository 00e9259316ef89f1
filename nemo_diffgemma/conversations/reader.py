"""Conversations of files, one after another, whatever form each file has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_diffgemma.chat import Message
from nemo_diffgemma.conversations.faults import Faults
from nemo_diffgemma.conversations.forms import convert, recognise
from nemo_diffgemma.conversations.record import Record
from nemo_diffgemma.conversations.records import records
from nemo_diffgemma.errors import FieldError


def size_of(path: Path) -> int:
    """Bytes of a file, to tell progress by; 0 where it is no more: reading it says so."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


@dataclass(frozen=True)
class Conversation:
    """What is said, and the answer to it.

    Args:
        asked: the messages before the answer.
        answer: text of the assistant's last message.
        tools: declarations of functions, which the chat template renders.
        where: the record's place, as errors name it.
    """

    asked: tuple[Message, ...]
    answer: str
    tools: tuple[Record, ...]
    where: str

    def as_line(self) -> str:
        """The conversation as a line of JSON, ASCII, without the line's end: what this reader reads back the same."""
        messages = [*self.asked, {"role": "assistant", "content": self.answer}]
        return json.dumps({"messages": messages} | ({"tools": self.tools} if self.tools else {}))


class Reader:
    """Reads every conversation of some files, once.

    Args:
        files: JSON lines, which may be gzipped, or Parquet.
        field: how the user named them (``data.train``).
        form: one of :data:`~nemo_diffgemma.conversations.forms.FORMS`; None recognises each file's by its first record.
        tick: told how many bytes of all files have been read.
    """

    def __init__(
        self,
        files: Sequence[Path],
        field: str,
        form: str | None = None,
        tick: Callable[[int], None] = lambda _done: None,
    ):
        self.files, self.field = tuple(files), field
        self.faults = Faults()
        self._form, self._tick = form, tick
        self._forms: Counter[str] = Counter()
        self._count = 0

    def __iter__(self) -> Iterator[Conversation]:
        """Every conversation; what is wrong with a line goes to :attr:`faults`, for whoever iterates to check.

        Raises:
            FieldError: when a file cannot be read, is empty, or is of none of the forms.
        """
        before = 0
        for path in self.files:
            yield from self._of(path, before)
            before += size_of(path)
            self._tick(before)

    def summary(self) -> str:
        """How many conversations of which forms were read so far, in words."""
        conversations = f"{self._count:,} conversation{'' if self._count == 1 else 's'}"
        forms = [f"{form} form" + (f" ({n:,})" if len(self._forms) > 1 else "") for form, n in self._forms.items()]
        several = f" of {len(self.files)} files" if len(self.files) > 1 else ""
        files = Counter(path.resolve() for path in self.files)
        twice = [str(path) for path in dict.fromkeys(self.files) if files[path.resolve()] > 1]
        several += f" ({', '.join(twice[:4])} more than once)" if twice else ""
        return f"{conversations}{several}, {', '.join(forms)}"

    def _of(self, path: Path, before: int) -> Iterator[Conversation]:
        form = self._form
        for where, record in records(path, self.field, self.faults, form, lambda done: self._tick(before + done)):
            try:
                form = form or recognise(record, where)
                messages, tools = convert(record, form, where)
            except FieldError as error:
                self.faults.add(where, error)
                continue
            self._count += 1
            self._forms[form] += 1
            yield Conversation(tuple(messages[:-1]), str(messages[-1]["content"]), tuple(tools), where)
