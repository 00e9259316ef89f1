"""Which tokens answers are told apart by."""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, product

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.tokenizer import Tokenizer
from trtllm_build.runtime.read import Label

# The first of these that a tokenizer has as one token each.
_TRUTH = (("yes", "no"), ("Yes", "No"), ("true", "false"), ("y", "n"), ("1", "0"))


@dataclass(frozen=True)
class Named:
    """A label: how the prompt spells it, and the tokens that mean it, with and without a space before."""

    text: str
    ids: Label


class Labels:
    """The labels of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._known: tuple[Named, ...] = ()

    @cached_property
    def truth(self) -> tuple[Named, Named]:
        """Yes and no.

        Raises:
            FieldError: when the tokenizer has no pair of tokens for them.
        """
        for yes, no in _TRUTH:
            pair = self._named(yes), self._named(no)
            if pair[0] and pair[1] and not set(pair[0].ids) & set(pair[1].ids):
                return pair[0], pair[1]
        raise _cannot("questions", "a predicate", "a tokenizer with one token each for yes and no, or 1 and 0")

    def levels(self, count: int) -> tuple[Named, ...]:
        """Of a score: the digits from 0, or letters where those do not do."""
        digits = self._first(count, iter(string.digits)) if count <= len(string.digits) else ()
        return digits if len(digits) == count else self.options(count)

    def options(self, count: int) -> tuple[Named, ...]:
        """A, B, C and so on, then other short tokens.

        Raises:
            FieldError: when the tokenizer has fewer that can be told apart.
        """
        if count > len(self._known):
            self._known = self._first(count, self._candidates())
        most = len(self._known)
        if count > most:
            raise _cannot("choices", f"{count} of them", f"at most {most}: this tokenizer tells no more labels apart")
        return self._known[:count]

    def _candidates(self) -> Iterator[str]:
        upper, lower = string.ascii_uppercase, string.ascii_lowercase
        yield from upper
        yield from lower
        yield from map("".join, product(upper, repeat=2))
        yield from map("".join, product(upper, lower))
        yield from map("".join, product(lower, repeat=2))
        yield from string.digits
        # words of the vocabulary, the shortest first: of one token, and text by themselves
        vocabulary = self._tokenizer.definition["model"]["vocab"]
        words = {text for token in vocabulary if (text := str(token).lstrip("\u2581\u0120")).isalpha()}
        yield from sorted((word for word in words if word.isascii()), key=lambda word: (len(word), word))

    def _first(self, count: int, texts: Iterator[str]) -> tuple[Named, ...]:
        """So many of ``texts`` that are one token and share none."""
        taken: set[int] = set()

        def apart() -> Iterator[Named]:
            for text in texts:
                found = self._named(text)
                if found is not None and not taken & set(found.ids):
                    taken.update(found.ids)
                    yield found

        return tuple(islice(apart(), count))

    def _named(self, text: str) -> Named | None:
        """None for a text that is not one token."""
        plain, spaced = self._tokenizer.literals([text, f" {text}"])
        if len(plain) != 1 or self._tokenizer.decode(plain).strip() != text:
            return None
        ids = [*plain, *(spaced if len(spaced) == 1 and spaced != plain else ())]
        return Named(text, tuple(ids))


def _cannot(field: str, value: str, allowed: str) -> FieldError:
    return FieldError(field=field, value=value, allowed=allowed, fix="ask with fewer, or serve another checkpoint")
