"""Lists that are made up: so many of a class of words, none twice."""

from __future__ import annotations

from nemo_diffgemma.demo_task.kind import Kind, Right, Style, Turns
from nemo_diffgemma.demo_task.wording import Wordings, bare, wrapped
from nemo_diffgemma.demo_task.words import COLORS, DAYS, ITEMS, MONTHS, NAMES, NUMBERS

CLASSES = {"colors": COLORS, "items": ITEMS, "days": DAYS, "months": MONTHS, "names": NAMES}

_NAME = Wordings(
    trained=(
        "(Name|List|Tell me|Give me|Write|Say) {number} (|different ){things}.",
        "(Name|List|Give me) any {number} {things}.",
        "{number} (|different ){things}(|, please.|.)",
        "(Can|Could) you (name|list|tell me) {number} {things}?",
        "(I need|I want|We need) {number} (|different ){things}.",
        "(Which|What) {number} {things} do you know?",
    ),
    unseen=(
        "Tell me any {number} {things} you know.",
        "I want you to name {number} {things}.",
        "A list of {number} {things}, please.",
    ),
)


def _make_named(style: Style) -> tuple[Turns, str]:
    things, number = style.draw.choice(list(CLASSES)), style.draw.choice(list(NUMBERS))
    prompt = _NAME.write({"things": things, "number": number}, style)
    return (wrapped(prompt, style),), ", ".join(style.draw.sample(CLASSES[things], NUMBERS[number]))


def _right_named(turns: Turns) -> Right | None:
    for fields in _NAME.readings(bare(turns[0])) if len(turns) == 1 else ():
        known, number = CLASSES.get(fields["things"]), NUMBERS[fields["number"]]
        if known is not None:
            return lambda answer: len(set(answer.split(", ")) & set(known)) == number == answer.count(",") + 1
    return None


NAMED = Kind("list made up", 4, _make_named, _right_named)
