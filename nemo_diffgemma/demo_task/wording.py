"""Templates that write a prompt from its fields and read the fields of a prompt."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence

from nemo_diffgemma.demo_task.words import DAYS, MONTHS

Fields = dict[str, str]

_DAY = "|".join(DAYS)
_PROPER = rf"(?!(?:{_DAY})\b)[A-Z][a-z]+"
_WORD, _NUMBER = r"[a-z]+", r"[1-9]\d*"
# What a field of this name looks like; any other is text up to what follows it.
_PATTERNS = {
    "name": _PROPER,
    "city": _PROPER,
    "day": _DAY,
    "month": "|".join(MONTHS),
    "item": _WORD,
    "color": _WORD,
    "unit": _WORD,
    "smaller": _WORD,
    "count": _NUMBER,
    "amount": _NUMBER,
    "date": r"[1-9]\d?",
    "ordinal": r"[1-9]\d?(?:st|nd|rd|th)",
    "year": r"\d{4}",
    "first": r"\w+",
    "step": _NUMBER,
    "many": _NUMBER,
    "second": r"\w+",
    "third": r"\w+",
    "words": r"[A-Za-z]+(?:,? [A-Za-z]+)+",
    "rest": r"|(?: .+?)",
}


class Wording:
    """One way of asking: text with ``{fields}``."""

    def __init__(self, template: str):
        self.template = template
        texts, self.names = _split(template)
        pattern = re.escape(texts[0])
        for name, text in zip(self.names, texts[1:], strict=True):
            pattern += f"(?P<{name}>{_PATTERNS.get(name, '.+?')})" + re.escape(text)
        self._regex = re.compile(pattern, re.DOTALL)

    def write(self, fields: Mapping[str, str]) -> str:
        """The text with these fields; there may be more of them than it has."""
        return self.template.format_map(fields)

    def read(self, text: str) -> Fields | None:
        """The fields of a text that is worded so; None for any other."""
        found = self._regex.fullmatch(text)
        return None if found is None else found.groupdict()


class Wordings:
    """All ways of asking for one thing: those that are trained, and those that are kept to judge the model by."""

    def __init__(self, trained: Sequence[str], unseen: Sequence[str]):
        self.trained, self.unseen = tuple(map(Wording, trained)), tuple(map(Wording, unseen))

    def choose(self, draw: random.Random, unseen: bool = False) -> Wording:
        """One of them at random."""
        return draw.choice(self.unseen if unseen else self.trained)

    def readings(self, text: str) -> Iterator[Fields]:
        """The fields of a text, once for each wording that it may have."""
        for wording in (*self.trained, *self.unseen):
            fields = wording.read(text)
            if fields is not None:
                yield fields


def _split(template: str) -> tuple[list[str], list[str]]:
    pieces = re.split(r"\{(\w+)\}", template)
    return pieces[::2], pieces[1::2]
