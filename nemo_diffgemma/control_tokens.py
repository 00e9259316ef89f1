"""Control tokens that a text spells out stay text: only the chat template can open or end a turn.

A tokenizer takes ``<|turn>`` for the control token wherever it stands in a text. So before a template is rendered, the
characters of users' texts that could begin, end or be part of a control token are exchanged for private ones, one for
one, which no text of that conversation holds. In what the template makes of them, a control token without a private
character is the template's own. Then the characters are changed back, and where the text now spells a control token
that is not the template's, it is cut inside: the two halves are tokenized apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from nemo_diffgemma.errors import FieldError

# Supplementary Private Use Areas: no character of any script.
_PRIVATE = (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))
_ANY_PRIVATE = re.compile("[\U000f0000-\U0010ffff]")
# Values that templates compare, and that the callers restrict to known words.
_NAMES = ("role", "type")


class Masked(NamedTuple):
    """A conversation whose critical characters are exchanged.

    Args:
        value: the conversation, of the same shape.
        back: private characters to what they stand for, for :meth:`str.translate`; empty when nothing was exchanged.
    """

    value: Any
    back: Mapping[int, str]


class Rendered(NamedTuple):
    """What a template made of a conversation.

    Args:
        pieces: the text, cut so that no piece spells a control token that is not the template's.
        control: the template's control tokens, in order.
    """

    pieces: list[str]
    control: list[str]


class _Table(NamedTuple):
    """Characters to private ones and back, for :meth:`str.translate`."""

    ends: Mapping[int, str]
    every: Mapping[int, str]
    back: Mapping[int, str]


class ControlTokens:
    """The control tokens of one tokenizer.

    Args:
        tokens: what is spelled out for each.
        reserved: a text (the chat template) whose characters stand for themselves.
    """

    def __init__(self, tokens: Iterable[str], reserved: str = ""):
        self.tokens = frozenset(tokens)
        longest_first = sorted(self.tokens, key=lambda token: (-len(token), token))
        self._pattern = _any_of(longest_first)
        # no white space, which templates trim
        self._ends = {c for token in self.tokens for c in (token.strip()[0], token.strip()[-1])}
        self._every = {c for token in self.tokens for c in token if not c.isspace()}
        self._critical = _any_of(self._ends)
        self._joined, self._longest = "\n".join(longest_first), max(map(len, longest_first), default=0)
        self._reserved = set(_ANY_PRIVATE.findall(reserved))
        self._usual = self._table(self._reserved)

    def mask(self, value: Any) -> Masked:
        """Exchange the critical characters of every text in ``value``: mappings, sequences and texts in any depth.

        Raises:
            FieldError: when the texts leave no private character for it.
        """
        texts: list[str] = []
        _collect(value, texts)
        # most texts are long and have none of these characters: one search for all of them
        if self._critical.search("".join(texts)) is None and not any(map(self._is_inside, texts)):
            return Masked(value, {})
        taken = {c for text in texts for c in _ANY_PRIVATE.findall(text)}
        table = self._table(taken | self._reserved) if taken else self._usual
        return Masked(self._masked(value, table), table.back)

    def unmask(self, rendered: str, back: Mapping[int, str]) -> Rendered:
        """Change a rendered template's private characters back, and divide the text where it must not be read across.

        Args:
            rendered: what the template made of :attr:`Masked.value`.
            back: :attr:`Masked.back`.
        """
        if not back:
            return Rendered([rendered], self._pattern.findall(rendered))
        text = rendered.translate(back)
        cuts, control, position = [0], list[str](), 0
        # leftmost first and longest first, as tokenizers look for them
        while found := self._pattern.search(text, position):
            start, end = found.span()
            own = self._pattern.match(rendered, start)
            if own is None:
                position = start + 1
                cuts.append(position)
                continue
            control.append(own[0])
            position = own.end()
            if position != end:
                cuts.append(position)
        return Rendered([text[i:j] for i, j in zip(cuts, [*cuts[1:], len(text)], strict=True)], control)

    def literal(self, text: str) -> list[str]:
        """A text in pieces none of which spells a control token."""
        cuts, position = [0], 0
        while found := self._pattern.search(text, position):
            position = found.start() + 1
            cuts.append(position)
        return [text[i:j] for i, j in zip(cuts, [*cuts[1:], len(text)], strict=True)]

    def starts(self, text: str) -> str | None:
        """The control token that ``text`` starts with."""
        found = self._pattern.match(text)
        return None if found is None else found[0]

    # -- which characters --------------------------------------------------------------------------------------------

    def _is_inside(self, text: str) -> bool:
        """Whether a template could make a control token of ``text`` by writing something before and behind it."""
        if len(text) > self._longest and not text[0].isspace() and not text[-1].isspace():
            return False
        core = text.strip()
        return 0 < len(core) <= self._longest and core in self._joined

    def _table(self, taken: set[str]) -> _Table:
        free = (chr(code) for code in _PRIVATE if chr(code) not in taken)
        private = dict(zip(sorted(self._every), free, strict=False))
        if len(private) < len(self._every):
            raise FieldError("messages", f"{len(taken)} private-use characters", "fewer", "leave some of them out")
        every = {ord(c): there for c, there in private.items()}
        ends = {ord(c): private[c] for c in self._ends}
        return _Table(ends, every, {ord(there): c for c, there in private.items()})

    def _masked(self, value: Any, table: _Table) -> Any:
        if isinstance(value, str):
            return value.translate(table.every if self._is_inside(value) else table.ends)
        if isinstance(value, Mapping):
            # of keys only the ends: a template sorts them
            return {
                (key.translate(table.ends) if _is_free(key) else key): (
                    self._masked(item, table) if key not in _NAMES or not _is_name(item) else item
                )
                for key, item in value.items()
            }
        if isinstance(value, Sequence) and not isinstance(value, bytes):
            return [self._masked(item, table) for item in value]
        return value


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier()


def _is_free(key: Any) -> bool:
    """Whether the key of a mapping is a text, and no name that a template looks up."""
    return isinstance(key, str) and not key.isidentifier()


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern of any of these texts, the longest where several begin alike: a tree, since there may be thousands."""
    tree: dict[str, Any] = {}
    for text in texts:
        node = tree
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(_branches(tree) if tree else r"(?!)")


def _branches(node: dict[str, Any]) -> str:
    """The expression of what may follow; the key "" says that a text may end here."""
    following = [re.escape(character) + _branches(node[character]) for character in sorted(node) if character]
    if not following:
        return ""
    return f"(?:{'|'.join(following)})" + ("?" if "" in node else "")


def _collect(value: Any, texts: list[str]) -> None:
    kind = type(value)  # checks of abstract classes are slow, and conversations many
    if kind is str:
        texts.append(value)
    elif kind is list or kind is tuple:
        for item in value:
            _collect(item, texts)
    elif kind is dict or isinstance(value, Mapping):
        for key, item in value.items():
            if _is_free(key):
                texts.append(key)
            if key not in _NAMES or not _is_name(item):
                _collect(item, texts)
    elif isinstance(value, str):
        texts.append(value)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for item in value:
            _collect(item, texts)
