"""Token ids to text as they come, never half a character."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_diffgemma.tokenizer import Tokenizer

_INCOMPLETE = "\ufffd"  # what a tokenizer decodes the first bytes of an unfinished character to


class Detokenizer:
    """Text of one request; without a tokenizer every text is empty."""

    def __init__(self, tokenizer: Tokenizer | None):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._text = ""

    def push(self, ids: Sequence[int], last: bool) -> str:
        """Add tokens and return the new text; an unfinished character waits, unless this is the ``last`` call."""
        self._ids += ids
        text = self._decode(self._ids)
        if not last:
            text = text.rstrip(_INCOMPLETE)
        new = text[len(self._text) :]
        self._text += new
        return new

    def preview(self, ids: Sequence[int]) -> str:
        """The text that ``ids`` would add, without adding them."""
        return self._decode(self._ids + list(ids))[len(self._text) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return "" if self._tokenizer is None else self._tokenizer.decode(ids)
