"""The demo task: short requests with one right answer each, so that a trained model's answers can be checked exactly.

Four kinds, all with structure that parallel denoising can fill in any order:

- a sentence to a JSON record (some records need a second canvas),
- a date in words to ISO 8601,
- a length or weight in a smaller unit,
- a list of words in reverse.
"""

from __future__ import annotations

import calendar
import json
import os
import random
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from nemo_diffgemma.tokenizer import SPECIAL_TOKENS, train_tokenizer

Pair = tuple[str, str]

# fmt: off
NAMES = (
    "Ada", "Ben", "Cleo", "Dara", "Eli", "Finn", "Gia", "Hugo", "Ines", "Kira",
    "Liam", "Mara", "Nils", "Olga", "Pia", "Rosa", "Sven", "Tara", "Uma", "Vera",
)
# fmt: on
ITEMS = ("lamps", "bags", "hats", "cups", "beds", "pens", "toys", "rugs")
COLORS = ("red", "blue", "green", "black", "white", "pink")
DAYS = ("Monday", "Tuesday", "Friday", "Sunday")
CITIES = ("Rome", "Oslo", "Lima", "Cairo", "Paris")
MONTHS = tuple(calendar.month_name[1:])
UNITS = (("km", "m", 1000), ("kg", "g", 1000), ("m", "cm", 100), ("cm", "mm", 10))


def record(draw: random.Random) -> Pair:
    """An order in a sentence, as a JSON record."""
    name, item, color = draw.choice(NAMES), draw.choice(ITEMS), draw.choice(COLORS)
    count, city, day = draw.randint(10, 99), draw.choice(CITIES), draw.choice(DAYS)
    # with two more fields the answer runs into a second canvas
    long = draw.random() < 0.3
    more = f" from {city} by {day}" if long else ""
    prompt = draw.choice(
        (
            f"{name} wants {count} {color} {item}{more}.",
            f"Send {count} {color} {item} to {name}{more}.",
            f"{count} {item} in {color} for {name}{more}.",
        )
    )
    answer = {"name": name, "item": item, "color": color, "count": count}
    return prompt, json.dumps(answer | ({"city": city, "day": day} if long else {}))


def iso_date(draw: random.Random) -> Pair:
    """A date in words, as ISO 8601."""
    day, month, year = draw.randint(1, 28), draw.randint(1, 12), draw.randint(2020, 2029)
    word = MONTHS[month - 1]
    return draw.choice((f"{day} {word} {year}", f"{word} {day}, {year}")), f"{year}-{month:02d}-{day:02d}"


def smaller_unit(draw: random.Random) -> Pair:
    """A length or weight, in a smaller unit."""
    unit, smaller, factor = draw.choice(UNITS)
    amount = draw.randint(1, 999)
    return f"{amount} {unit} {draw.choice(('in', 'to'))} {smaller}", f"{amount * factor} {smaller}"


def reverse(draw: random.Random) -> Pair:
    """Two to four words, in reverse order."""
    words = draw.sample(ITEMS + COLORS, draw.randint(2, 4))
    return f"Reverse: {' '.join(words)}.", f"{' '.join(reversed(words))}."


KINDS: tuple[Callable[[random.Random], Pair], ...] = (record, iso_date, smaller_unit, reverse)


def pairs(count: int, seed: int, without: Collection[str] = ()) -> list[Pair]:
    """``count`` different prompts with their answers, none of them in ``without``; the same for the same seed."""
    draw = random.Random(seed)
    seen, found = set(without), list[Pair]()
    while len(found) < count:
        prompt, answer = draw.choice(KINDS)(draw)
        if prompt not in seen:
            seen.add(prompt)
            found.append((prompt, answer))
    return found


def write_demo_data(
    train: Path, held_out_file: Path, tokenizer: Path, vocab_size: int, examples: int, held_out: int, seed: int
) -> None:
    """Write both files of conversations, which share no prompt, and a tokenizer trained on the first.

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
    kept = pairs(held_out, seed)
    learnt = pairs(examples, seed + 1, without={prompt for prompt, _ in kept})
    _write_conversations(held_out_file, kept)
    _write_conversations(train, learnt)
    tokenizer.mkdir(parents=True, exist_ok=True)
    train_tokenizer(_texts(learnt), vocab_size, tokenizer)


def _texts(conversations: Iterable[Pair]) -> Iterable[str]:
    start, end = SPECIAL_TOKENS[4:6]
    for prompt, answer in conversations:
        # the words of the chat template must become single tokens too
        yield f"{start}user\n{prompt}{end}\n{start}model\n"
        yield answer


def _write_conversations(path: Path, conversations: Iterable[Pair]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for prompt, answer in conversations:
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    os.replace(partial, path)
