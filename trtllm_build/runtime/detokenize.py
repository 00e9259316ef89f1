"""Token ids to text as they come: never half a character, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_diffgemma.errors import require
from nemo_diffgemma.tokenizer import Tokenizer

_INCOMPLETE = "\ufffd"  # what a tokenizer decodes the first bytes of an unfinished character to


@dataclass(frozen=True)
class Piece:
    """What one :meth:`Detokenizer.push` lets out.

    Args:
        text: new text that may be shown.
        token_ids: new tokens. Without stop strings the pushed ones. With stop strings those whose text is out in
            full; where text was cut inside a token it has a few characters more than the tokens so far.
        stopped: a stop string was found. Text and tokens end before it, and nothing after it counts.
    """

    text: str
    token_ids: tuple[int, ...]
    stopped: bool


class Detokenizer:
    """Text of one request; without a tokenizer every text is empty and tokens pass through.

    The texts of all pieces together are what ``tokenizer.decode`` gives for all tokens, up to the stop string that
    starts first. A push decodes only its own tokens, those that still wait and a few before them.

    Args:
        tokenizer: decodes the tokens.
        stop: strings that end the text, none of them empty.

    Raises:
        FieldError: when stop strings are given without a tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str] = ()):
        require(
            tokenizer is not None or not stop,
            field="stop",
            value=list(stop),
            allowed="no stop strings: this engine has no tokenizer",
            fix="leave stop out, or add the tokenizer's files to the checkpoint and build again",
        )
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._stopped = False
        self._context: list[int] = []  # earlier tokens, just enough to decode the tail as if all were there
        self._context_length = 0  # characters
        self._tail: list[int] = []  # tokens after the context
        self._settled = 0  # of the tail's tokens: those whose text no later token can change
        self._given = 0  # of the tail's tokens: those let out
        self._shown = 0  # of the tail's characters: those let out
        self._stray_byte = [] if tokenizer is None else tokenizer.stray_byte

    def push(self, ids: Sequence[int], last: bool) -> Piece:
        """Add tokens. What a later token may change, or make a stop string, waits unless this is the ``last`` call.

        Raises:
            RuntimeError: after a piece that was ``stopped``.
        """
        if self._stopped:
            raise RuntimeError("tokens pushed after a stop string was found")
        if self._tokenizer is None:
            return Piece("", tuple(ids), False)
        self._tail += ids
        self._settled = len(self._tail) if last else self._boundary(len(self._tail), self._settled)
        text = self._text(self._tail[: self._settled])
        found, undecided = self._find_stop(text), len(text) if last else self._undecided(text)
        # a longer stop string may have begun before the one that was found: the earlier start counts, so wait
        self._stopped = found <= undecided and found < len(text)
        end = min(found, undecided)
        given = self._count_within(text[:end]) if self._stop else len(self._tail)
        piece = Piece(text[self._shown : end], tuple(self._tail[self._given : given]), self._stopped)
        self._shown, self._given = end, given
        self._forget()
        return piece

    def preview(self, ids: Sequence[int]) -> str:
        """The text that ``ids`` would add, without adding them: cut at a stop string, no unfinished character."""
        if self._tokenizer is None:
            return ""
        text = self._text([*self._tail, *ids]).rstrip(_INCOMPLETE)
        return text[self._shown : self._find_stop(text)]

    # -- stop strings -----------------------------------------------------------------

    def _find_stop(self, text: str) -> int:
        """Where in ``text`` the first stop string starts, its length when there is none."""
        starts = (text.find(stop, self._shown) for stop in self._stop)
        return min((start for start in starts if start >= 0), default=len(text))

    def _undecided(self, text: str) -> int:
        """Where in ``text`` what may be the beginning of a stop string starts, its length when there is none."""
        longest = max(map(len, self._stop), default=1)
        for start in range(max(self._shown, len(text) - longest + 1), len(text)):
            rest = text[start:]
            if any(stop.startswith(rest) for stop in self._stop):
                return start
        return len(text)

    def _count_within(self, text: str) -> int:
        """How many tokens of the tail have all of their text in ``text``."""
        count = self._settled
        while count > self._given and not text.startswith(self._text(self._tail[:count])):
            count -= 1
        return count

    # -- decoding ---------------------------------------------------------------------

    def _boundary(self, high: int, low: int) -> int:
        """A place in the tail, at most ``high``, across which characters are not joined; ``low`` is known to be one.

        Past the length of a character the steps back widen: a long broken end must not cost a decode a token, and
        what is found too early only waits longer.
        """
        back = 0
        while high - back > low:
            ids = self._tail[: high - back]
            text = self._text(ids)
            # decoders with byte tokens give up on a whole run of them when one is wrong, complete characters too
            if not text.endswith(_INCOMPLETE) and self._text(ids + self._stray_byte).startswith(text):
                return len(ids)
            back += 1 + back // 4
        return low

    def _forget(self) -> None:
        """Move tokens that are done with from the tail to the context, and shorten that."""
        done = self._boundary(min(self._given, self._settled), 0)
        self._shown -= len(self._text(self._tail[:done]))
        ids = self._context + self._tail[:done]
        # decoders treat the first token differently (a leading space goes): keep one that has text
        start = max(len(ids) - 1, 0)
        while start > 0 and not self._decode(ids[start:]):
            start -= 1
        # what follows it has no text, so once is enough: a long row of special tokens must not be kept
        self._context = list(dict.fromkeys(ids[start:]))
        self._context_length = len(self._decode(self._context))
        del self._tail[:done]
        self._settled -= done
        self._given -= done

    def _text(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` where they follow the context."""
        return self._decode([*self._context, *ids])[self._context_length :]

    def _decode(self, ids: Sequence[int]) -> str:
        return "" if self._tokenizer is None else self._tokenizer.decode(ids)
