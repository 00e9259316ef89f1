"""Lists: in reverse, sorted, summed up, and legs of a journey put in order.

The last two are chains: each entry of the answer follows from the one before it, so no single pass of a model with a
few layers finds them all. They take many denoising steps, where the other kinds take two or three.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from nemo_diffgemma.demo_task.kind import Kind, Turns
from nemo_diffgemma.demo_task.wording import Wordings
from nemo_diffgemma.demo_task.words import COLORS, ITEMS

_WORDS = ITEMS + COLORS

_REVERSE = Wordings(
    trained=(
        "Reverse: {words}.",
        "Reverse the list: {words}.",
        "Backwards: {words}.",
        "In reverse: {words}.",
        "Turn around: {words}.",
        "{words}: backwards, please.",
        "What is {words} in reverse?",
        "Write from last to first: {words}.",
    ),
    unseen=("Give me {words} in reverse.", "Read backwards: {words}.", "Reverse this for me: {words}."),
)
_COUNT = Wordings(
    trained=(
        "Count from {first} by {step}, {many} numbers.",
        "Count {many} numbers from {first} by {step}.",
        "Start at {first} and add {step}, {many} numbers.",
        "From {first} in steps of {step}, {many} numbers.",
        "{many} numbers from {first} in steps of {step}.",
        "Add {step} again and again: {many} numbers from {first}.",
        "Count up from {first} in steps of {step}: {many} numbers.",
    ),
    unseen=(
        "Give me {many} numbers, from {first} in steps of {step}.",
        "Count on from {first} by {step} for {many} numbers.",
        "I need {many} numbers from {first}, each {step} more.",
    ),
)


def draw_reverse(draw: random.Random, unseen: bool) -> tuple[Turns, str]:
    """Words from last to first."""
    words, joined = _some_words(draw, 3, 5)
    return (_REVERSE.choose(draw, unseen).write({"words": joined}),), ", ".join(reversed(words))


def answer_reverse(turns: Turns) -> str | None:
    """The words asked for."""
    return _first(_REVERSE, "words", turns, lambda words: ", ".join(reversed(words)))


def draw_count(draw: random.Random, unseen: bool) -> tuple[Turns, str]:
    """Numbers that grow by a step."""
    first, step, many = draw.randint(1, 30), draw.randint(2, 9), draw.randint(5, 9)
    fields = {"first": str(first), "step": str(step), "many": str(many)}
    return (_COUNT.choose(draw, unseen).write(fields),), _count(first, step, many)


def answer_count(turns: Turns) -> str | None:
    """The numbers asked for."""
    readings = _COUNT.readings(turns[0]) if len(turns) == 1 else iter(())
    return next((_count(int(f["first"]), int(f["step"]), int(f["many"])) for f in readings), None)


def _count(first: int, step: int, many: int) -> str:
    return ", ".join(str(first + i * step) for i in range(many))


def _some_words(draw: random.Random, least: int, most: int) -> tuple[list[str], str]:
    words = draw.sample(_WORDS, draw.randint(least, most))
    return words, draw.choice((" ", ", ")).join(words)


def _first(wordings: Wordings, field: str, turns: Turns, answer: Callable[[list[str]], str]) -> str | None:
    readings = wordings.readings(turns[0]) if len(turns) == 1 else iter(())
    return next((answer(fields[field].replace(",", "").split()) for fields in readings), None)


REVERSE = Kind("list in reverse", 8, draw_reverse, answer_reverse)
COUNT = Kind("counting in steps", 10, draw_count, answer_count)
