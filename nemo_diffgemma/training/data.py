"""Conversations to token ids."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from nemo_diffgemma.chat import Chat
from nemo_diffgemma.conversations.reader import Conversation, Reader, size_of
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.files import some
from nemo_diffgemma.tokenizer import Tokenizer
from nemo_diffgemma.waiting import waiting

_AT_ONCE = 512  # conversations that are tokenized together


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


class Encoded(NamedTuple):
    """A conversation, without what was cut of it, and its example."""

    talk: Conversation
    example: Example


@dataclass(frozen=True)
class Loaded:
    """The examples of some files.

    Args:
        examples: in the order of the files.
        lines: the first of the conversations, as many as were to be kept, as JSON lines; without what was cut of them.
        summary: how many there are, of which form, and what happened to those that were too long; one line.
    """

    examples: list[Example]
    lines: list[str]
    summary: str


@dataclass
class Encoder:
    """Makes examples of conversations.

    Args:
        tokenizer: whose chat template is rendered.
        canvas: canvas length in tokens.
        end: the token that fills the last canvas.
        max_tokens: of prompt and response together.
        too_long: ``refuse``, ``skip``, or ``cut``: older exchanges are dropped, the system message stays; what does
            not fit even then is skipped.
    """

    tokenizer: Tokenizer
    canvas: int
    end: int
    max_tokens: int
    too_long: str = "refuse"
    cut: list[str] = field(default_factory=list)
    """Places of the conversations that lost older messages."""
    skipped: list[str] = field(default_factory=list)
    """Places of the conversations that were left out."""

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded | FieldError | None]:
        """An example for each conversation; what is wrong with it; or None where it was skipped."""
        prompts = self.tokenizer.chats([Chat(c.asked, c.tools) for c in conversations])
        answers = self.tokenizer.literals([c.answer for c in conversations])
        return [self._example(c, p, a) for c, p, a in zip(conversations, prompts, answers, strict=True)]

    def _example(
        self, talk: Conversation, prompt: list[int] | FieldError, answer: list[int]
    ) -> Encoded | FieldError | None:
        if isinstance(prompt, FieldError):
            return FieldError(
                field=f"{talk.where}: {prompt.field}", value=prompt.value, allowed=prompt.allowed, fix=prompt.fix
            )
        response = answer + self.tokenizer.answer_end
        response += [self.end] * (-len(response) % self.canvas)
        length = len(prompt) + len(response)
        if length <= self.max_tokens:
            return Encoded(talk, Example(prompt, response))
        if self.too_long == "refuse":
            allowed = f"at most data.max_tokens {self.max_tokens}"
            fix = "raise it, or pass data.too_long=cut (drops older messages) or data.too_long=skip"
            return FieldError(field=talk.where, value=f"{length} tokens", allowed=allowed, fix=fix)
        shorter = self._shorter(talk, self.max_tokens - len(response)) if self.too_long == "cut" else None
        (self.skipped if shorter is None else self.cut).append(talk.where)
        return None if shorter is None else Encoded(shorter, Example(self._prompt(shorter), response))

    def _prompt(self, talk: Conversation) -> list[int]:
        return self.tokenizer.chat(talk.asked, tools=talk.tools)

    def _shorter(self, talk: Conversation, room: int) -> Conversation | None:
        """Without the oldest exchanges, as few of them as fit; None when the last alone does not."""
        system = [m for m in talk.asked[:1] if m["role"] == "system"]
        history = talk.asked[len(system) :]
        # a template may demand that a conversation starts with the user
        starts = [i for i, message in enumerate(history) if i and message["role"] == "user"]

        def since(start: int) -> Conversation:
            return replace(talk, asked=(*system, *history[start:]))

        first = bisect_left(starts, True, key=lambda start: len(self._prompt(since(start))) <= room)
        return since(starts[first]) if first < len(starts) else None

    def summary(self) -> str:
        """What happened to those that were too long; empty when none was."""
        told = ""
        if self.cut:
            told += f"; {len(self.cut):,} over {self.max_tokens} tokens lost older messages: {some(self.cut)}"
        if self.skipped:
            alone = " with their last exchange alone" if self.too_long == "cut" else ""
            told += f"; {len(self.skipped):,} over {self.max_tokens} tokens{alone} left out: {some(self.skipped)}"
        return told


def load_examples(
    files: Sequence[Path],
    encoder: Encoder,
    key: str = "data.train",
    form: str | None = None,
    keep: int | None = 0,
    shown: bool = True,
) -> Loaded:
    """Every conversation of some files as token ids.

    Args:
        files: see :class:`~nemo_diffgemma.conversations.reader.Reader`.
        encoder: makes the examples.
        key: how the user named the files.
        form: of their records; None recognises it.
        keep: how many conversations to give back as JSON lines; None keeps all.
        shown: whether this process shows how far it is.

    Raises:
        FieldError: naming file, line and field of the first that cannot be used, and how many more there are; or when
            none is left.
    """
    examples: list[Example] = []
    lines: list[str] = []
    require(bool(files), field=key, value=None, allowed="one file or more", fix=f"pass {key}=FILE")
    with waiting(f"{key}: reading and tokenizing", sum(map(size_of, files)), shown) as tick:
        reader = Reader(files, key, form, tick)
        conversations = iter(reader)
        while batch := list(islice(conversations, _AT_ONCE)):
            for talk, encoded in zip(batch, encoder.encode(batch), strict=True):
                if isinstance(encoded, FieldError):
                    reader.faults.add(talk.where, encoded)
                elif encoded is not None:
                    examples.append(encoded.example)
                    if keep is None or len(lines) < keep:
                        lines.append(encoded.talk.as_line())
    reader.faults.check()
    summary = f"{key}: {reader.summary()}{encoder.summary()}"
    allowed = "at least one conversation that is left"
    require(
        bool(examples),
        field=key,
        value=summary,
        allowed=allowed,
        fix="raise data.max_tokens, or pass data.too_long=cut",
    )
    return Loaded(examples, lines, summary)
