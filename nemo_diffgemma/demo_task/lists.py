"""Lists: in reverse, in any other order, and made up; none twice."""

from __future__ import annotations

from nemo_diffgemma.demo_task.kind import Kind, Right, Style, Turns
from nemo_diffgemma.demo_task.wording import Wordings, bare, wrapped
from nemo_diffgemma.demo_task.words import COLORS, DAYS, ITEMS, MONTHS, NAMES, NUMBERS

CLASSES = {"colors": COLORS, "items": ITEMS, "days": DAYS, "months": MONTHS, "names": NAMES}

_REVERSE = Wordings(
    trained=(
        "(Reverse|In reverse|Reverse the list|Reverse this|Backwards|From the end|The other way round): {words}(|.)",
        "{words} (in reverse|backwards|the other way round)(.|, please.)",
        "(Put|Write|List|Say) {words} (in reverse|backwards).",
        "(Put|Write|Say) (this|it) (in reverse|backwards): {words}(|.)",
        "(What is|How is) {words} (in reverse|backwards)?",
    ),
    unseen=("Reverse {words} for me.", "The list in reverse: {words}.", "{words}. Now backwards, please."),
)
_SHUFFLE = Wordings(
    trained=(
        "(Shuffle|Mix|In any order|Shuffle the list|Shuffle this|Mix up|In random order): {words}(|.)",
        "{words} (in any order|in random order|shuffled|mixed)(.|, please.)",
        "(Put|Write|List|Say) {words} in (any|random) order.",
        "(Put|Write|Say) (this|it) in (any|random) order: {words}(|.)",
    ),
    unseen=("Shuffle {words} for me.", "The list in random order: {words}.", "{words}. Now mixed, please."),
)
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


def _make_reverse(style: Style) -> tuple[Turns, str]:
    words = _some_words(style, 2, 4)
    return (_ask(_REVERSE, words, style),), ", ".join(words[::-1])


def _right_reverse(turns: Turns) -> Right | None:
    words = _words(_REVERSE, turns)
    return None if words is None else ", ".join(words[::-1])


def _make_shuffled(style: Style) -> tuple[Turns, str]:
    words = _some_words(style, 4, 5)
    return (_ask(_SHUFFLE, words, style),), ", ".join(style.draw.sample(words, len(words)))


def _right_shuffled(turns: Turns) -> Right | None:
    words = _words(_SHUFFLE, turns)
    return None if words is None else lambda answer: sorted(answer.split(", ")) == sorted(words)


def _make_named(style: Style) -> tuple[Turns, str]:
    things, number = style.draw.choice(list(CLASSES)), style.draw.choice(list(NUMBERS))
    prompt = _NAME.write({"things": things, "number": number}, style)
    return (wrapped(prompt, style),), ", ".join(style.draw.sample(CLASSES[things], NUMBERS[number]))


def _right_named(turns: Turns) -> Right | None:
    for fields in _NAME.readings(bare(turns[0])) if len(turns) == 1 else ():
        known, number = CLASSES.get(fields["things"]), NUMBERS[fields["number"]]
        if known is not None:
            return lambda answer: len(found := set(answer.split(", ")) & set(known)) == number == answer.count(",") + 1
    return None


def _some_words(style: Style, least: int, most: int) -> list[str]:
    draw = style.draw
    known = draw.choice([*CLASSES.values(), COLORS + ITEMS])
    return draw.sample(known, draw.randint(least, most))


def _ask(wordings: Wordings, words: list[str], style: Style) -> str:
    text = style.draw.choice((" ", ", ")).join(words)
    return wrapped(wordings.write({"words": text}, style), style)


def _words(wordings: Wordings, turns: Turns) -> list[str] | None:
    for fields in wordings.readings(bare(turns[0])) if len(turns) == 1 else ():
        words = fields["words"].replace(",", "").split()
        if all(any(word in known for known in CLASSES.values()) for word in words):
            return words
    return None


REVERSE = Kind("list in reverse", 5, _make_reverse, _right_reverse)
SHUFFLED = Kind("list in any order", 5, _make_shuffled, _right_shuffled)
NAMED = Kind("list made up", 2, _make_named, _right_named)
