"""The demo task's files: conversations and a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from nemo_diffgemma.demo_task.task import Conversation, learnt
from nemo_diffgemma.demo_task.task import held_out as kept
from nemo_diffgemma.demo_task.unknown import UNKNOWN
from nemo_diffgemma.demo_task.words import COLORS, DAYS, ITEMS, MONTHS, NAMES, YEARS
from nemo_diffgemma.files import write_text
from nemo_diffgemma.new_tokenizer import SPECIAL_TOKENS, train_tokenizer


def write_demo_data(
    train: Path, held_out_file: Path, tokenizer: Path, vocab_size: int, examples: int, held_out: int, seed: int
) -> None:
    """Write both files of conversations, which share no question, and a tokenizer trained on the first.

    Args:
        train, held_out_file: JSONL files to write.
        tokenizer: directory to write.
        vocab_size: tokens of the tokenizer.
        examples: number of training conversations.
        held_out: number of held-out conversations.
        seed: decides everything.

    Raises:
        FieldError: when the texts do not yield ``vocab_size`` tokens.
    """
    learn = learnt(examples, seed)
    for path, said in ((held_out_file, kept(held_out, seed)), (train, learn)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(json.dumps({"messages": c.messages}) + "\n" for c in said))
    tokenizer.mkdir(parents=True, exist_ok=True)
    train_tokenizer(_texts(learn), vocab_size, tokenizer)


def _texts(said: Sequence[Conversation]) -> Iterable[str]:
    start, end = SPECIAL_TOKENS[4:6]
    numbers = (*YEARS, *(f"{number:02d}" for number in range(100)))
    for word in (*NAMES, *ITEMS, *COLORS, *DAYS, *MONTHS, *numbers):
        yield from [word] * (len(said) // 20)  # often enough to become a token
    for conversation in said:
        yield conversation.answer
        if conversation.kind is UNKNOWN:
            continue  # its words are many and rare; those of the other kinds are to be one token each
        for index, turn in enumerate(conversation.turns):
            # the words of the chat template must become single tokens too
            yield f"{start}{('user', 'model')[index % 2]}\n{turn}{end}\n{start}model\n"
