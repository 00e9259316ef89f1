"""All kinds together: conversations for training, for judging, and the right answer to what anybody asks."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_diffgemma.chat import Message
from nemo_diffgemma.demo_task import orders, questions, values
from nemo_diffgemma.demo_task.kind import Kind, Right, Style, Turns
from nemo_diffgemma.demo_task.unknown import UNKNOWN

# UNKNOWN last: it takes what no other kind does
KINDS: tuple[Kind, ...] = (
    orders.RECORD,
    orders.LISTED,
    orders.SECOND,
    orders.INVENTED,
    questions.YES_OR_NO,
    questions.CHOICE,
    values.DATE,
    values.UNIT,
    UNKNOWN,
)
# kinds with more than one right answer
MANY = (orders.INVENTED,)


@dataclass(frozen=True)
class Conversation:
    """What is asked, and an answer that is right."""

    kind: Kind
    turns: Turns
    answer: str

    @property
    def messages(self) -> list[Message]:
        """As a line of chat JSONL has it, the answer included."""
        said = (*self.turns, self.answer)
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]

    def is_right(self, answer: str) -> bool:
        """Whether this answer is right, too: some questions have many right answers."""
        return self.kind.is_right(self.turns, answer)


def judged(count: int, seed: int, unseen: bool = False) -> list[Conversation]:
    """``count`` different conversations to judge a model by, each kind as often as the others.

    None of them is among those that are learnt, whatever their seed: see :func:`learnt`.

    Args:
        unseen: in wordings that are never trained.
    """
    return _conversations(count, seed, KINDS, [1] * len(KINDS), unseen=unseen)


def learnt(count: int, seed: int) -> list[Conversation]:
    """``count`` different conversations to train on, with noise in their wording; kinds by their shares."""
    return _conversations(count, seed, KINDS, [kind.share for kind in KINDS], noisy=True)


def held_out(count: int, seed: int) -> list[Conversation]:
    """As :func:`judged` in trained wordings, of the kinds with one right answer alone."""
    kinds = [kind for kind in KINDS if kind not in MANY]
    return _conversations(count, seed, kinds, [1] * len(kinds))


def right_answer(turns: Sequence[str]) -> tuple[Kind, Right]:
    """The kind of a question, in any of its wordings, and what is right.

    Args:
        turns: what was said, from the user's first to the user's last.
    """
    for kind in KINDS:
        right = kind.right(tuple(turns))
        if right is not None:
            return kind, right
    raise AssertionError("the last kind takes everything")


def _conversations(
    count: int, seed: int, kinds: Sequence[Kind], shares: Sequence[int], unseen: bool = False, noisy: bool = False
) -> list[Conversation]:
    draw = random.Random(f"{seed} {unseen} {noisy}")
    style = Style(draw, unseen, noisy)
    seen, found = set[Turns](), list[Conversation]()
    while len(found) < count:
        kind = draw.choices(kinds, shares)[0]
        turns, answer = kind.make(style)
        if all(turns) and turns not in seen and (unseen or _kept(turns) != noisy):
            seen.add(turns)
            found.append(Conversation(kind, turns, answer))
    return found


def _kept(turns: Turns) -> bool:
    """Whether these turns are kept from training, to judge by: one in eight of all that can be said."""
    return hashlib.blake2b("\n".join(turns).encode(), digest_size=1).digest()[0] % 8 == 0
