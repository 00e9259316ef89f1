"""All kinds together: conversations for training, for judging, and the right answer to what anybody asks."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nemo_diffgemma.demo_task import lists, questions, records, values
from nemo_diffgemma.demo_task.kind import Kind, Turns
from nemo_diffgemma.demo_task.unknown import UNKNOWN
from nemo_diffgemma.tokenizer import Message

# UNKNOWN last: it takes what no other kind does
KINDS: tuple[Kind, ...] = (
    records.RECORD,
    records.CHANGE,
    questions.YES_OR_NO,
    questions.CHOICE,
    questions.OPEN,
    values.DATE,
    values.UNIT,
    lists.REVERSE,
    lists.COUNT,
    UNKNOWN,
)


@dataclass(frozen=True)
class Conversation:
    """What is asked, and the one right answer."""

    kind: Kind
    turns: Turns
    answer: str

    @property
    def messages(self) -> list[Message]:
        """As a line of chat JSONL has it, the answer included."""
        said = (*self.turns, self.answer)
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def conversations(
    count: int, seed: int, without: Collection[Turns] = (), unseen: bool = False
) -> list[Conversation]:
    """``count`` different conversations, none of which begins like one of ``without``; the same for the same seed.

    Args:
        unseen: in wordings that are never trained, each kind as often as the others.
    """
    draw = random.Random(seed)
    seen, found = set(without), list[Conversation]()
    shares = [1 if unseen else kind.share for kind in KINDS]
    while len(found) < count:
        kind = draw.choices(KINDS, shares)[0]
        turns, answer = kind.draw(draw, unseen)
        if turns not in seen:
            seen.add(turns)
            found.append(Conversation(kind, turns, answer))
    return found


def right_answer(turns: Sequence[str]) -> tuple[Kind, str]:
    """The kind of a question, in any wording, and the right answer to it.

    Args:
        turns: what was said, from the user's first to the user's last.
    """
    for kind in KINDS:
        answer = kind.answer(tuple(turns))
        if answer is not None:
            return kind, answer
    raise AssertionError("the last kind takes everything")
