"""Templates that write a prompt from its fields and read the fields of a prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from nemo_diffgemma.demo_task.kind import Style
from nemo_diffgemma.demo_task.words import AFTER, BEFORE, COLORS, COUNTS, DAYS, ITEMS, MONTHS, NAMES, UNITS

Fields = dict[str, str]

_PARTS = re.compile(r"\{(\w+)\}|\(([^()]*)\)")
_UNIT_NAMES = sorted({name for unit, smaller, _ in UNITS for name in (unit, smaller)})
# What a field of this name looks like; any other is text up to what follows it.
_PATTERNS = {
    "name": "|".join(NAMES),
    "day": "|".join(DAYS),
    "month": "|".join(MONTHS),
    "item": "|".join(ITEMS),
    "color": "|".join(COLORS),
    "count": "|".join(sorted(COUNTS, reverse=True)),
    "unit": "|".join(_UNIT_NAMES),
    "smaller": "|".join(_UNIT_NAMES),
    "amount": r"[1-9]\d*",
    "date": r"[1-9]\d?",
    "ordinal": r"[1-9]\d?(?:st|nd|rd|th)",
    "year": r"\d{4}",
    "words": r"[A-Za-z]+(?:,? [A-Za-z]+)+",
    "rest": r"|(?: .+?)",
    "given": r"|(?: .+?)",
    "things": r"[a-z]+",
    "order": r"[^.?!]+\.",
    "question": r"[^.!]+\?",
}
# Words that noise puts between others: they mean nothing to any kind.
_IDLE = [
    "so",
    "well",
    "then",
    "just",
    "here",
    "there",
    "it",
    "me",
    "you",
    "we",
    "and",
    "also",
    "really",
    "please",
    "now",
    "thanks",
    "again",
    "for",
    "of",
    "the",
    "a",
]
_NOISY, _CHANGED = 0.25, 0.15  # share of the prompts with noise, and of their words that get one beside them


class Wording:
    """One way of asking: text with ``{fields}`` and ``(one|of several)``."""

    def __init__(self, template: str):
        self.template = template
        texts = _PARTS.split(template)
        # text, field or None, alternatives or None, text, ...
        self._parts = list(zip(texts[0::3], texts[1::3], texts[2::3], strict=False))
        self._end = texts[-1]
        self.names = [name for name in texts[1::3] if name]
        pattern = ""
        for text, name, several in self._parts:
            pattern += re.escape(text)
            if name:
                pattern += f"(?P<{name}>{_PATTERNS.get(name, '.+?')})"
            else:
                pattern += f"(?:{'|'.join(map(re.escape, several.split('|')))})"
        self._regex = re.compile(pattern + re.escape(self._end), re.DOTALL)

    def write(self, fields: Mapping[str, str], style: Style) -> str:
        """The text with these fields; there may be more of them than it has."""
        draw = style.draw
        noisy = style.noisy and draw.random() < _NOISY
        written = ""
        for text, name, several in [*self._parts, (self._end, None, None)]:
            asked = text + (draw.choice(several.split("|")) if several is not None else "")
            written += _with_noise(asked, style) if noisy else asked
            written += fields[name] if name else ""
        return written.strip()

    def read(self, text: str) -> Fields | None:
        """The fields of a text that is worded so; None for any other."""
        found = self._regex.fullmatch(text)
        return None if found is None else found.groupdict()


class Wordings:
    """All ways of asking for one thing: those that are trained, and those that are kept to judge the model by."""

    def __init__(self, trained: Sequence[str], unseen: Sequence[str]):
        self.trained, self.unseen = tuple(map(Wording, trained)), tuple(map(Wording, unseen))

    def choose(self, style: Style) -> Wording:
        """One of them at random."""
        return style.draw.choice(self.unseen if style.unseen else self.trained)

    def write(self, fields: Mapping[str, str], style: Style) -> str:
        """The text of one of them."""
        return self.choose(style).write(fields, style)

    def readings(self, text: str) -> Iterator[Fields]:
        """The fields of a text, once for each wording that it may have."""
        for wording in (*self.trained, *self.unseen):
            fields = wording.read(text)
            if fields is not None:
                yield fields


def wrapped(text: str, style: Style) -> str:
    """The text, sometimes with a word before or after it that changes nothing."""
    draw = style.draw
    if draw.random() < 0.1:
        text = f"{draw.choice(BEFORE)} {text}"
    if draw.random() < 0.1:
        text = f"{text} {draw.choice(AFTER)}"
    return text


def bare(text: str) -> str:
    """The text without what :func:`wrapped` may have added."""
    text = text.strip()
    for word in BEFORE:
        text = text.removeprefix(f"{word} ")
    for word in AFTER:
        text = text.removesuffix(f" {word}")
    return text


def _with_noise(text: str, style: Style) -> str:
    draw = style.draw
    words = []
    for word in text.split(" "):
        if word and draw.random() < _CHANGED:
            idle = draw.choice(_IDLE)
            word = draw.choice((f"{idle} {word}", f"{word} {idle}"))
        words.append(word)
    return " ".join(words)
