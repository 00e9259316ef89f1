"""The text of each token of a vocabulary: what stands in an answer where the token stands."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nemo_diffgemma.errors import FieldError
from trtllm_build.grammar.token_trie import TokenTrie

# tokens that a tokenizer's file does not call special, and that are no text all the same
_PLACEHOLDER = re.compile(r"<unused\d+>|<mask>|\[[a-z]+\]")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"  # how SentencePiece writes a space


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The texts of tokens: of any row of them, put together, they are what the tokenizer decodes, if that is UTF-8.

    Args:
        texts: bytes of each token by its id, which may be a part of a character; None for a token that is no text
            (control tokens, unused ones).
        drops_space: the tokenizer leaves out one space at the beginning of a text.
    """

    texts: tuple[bytes | None, ...]
    drops_space: bool = False

    @cached_property
    def trie(self) -> TokenTrie:
        """The texts as a trie, made at the first use: about a second for 262,144 tokens."""
        return TokenTrie(self.texts)

    @cached_property
    def key(self) -> str:
        """The same for the same vocabulary."""
        found = hashlib.sha256(b"1" if self.drops_space else b"0")
        for text in self.texts:
            found.update(b"-" if text is None else b"%d:" % len(text) + text)
        return found.hexdigest()


def read_vocabulary(file: Mapping[str, Any], controls: Collection[int], size: int) -> Vocabulary:
    """The texts of a tokenizer's tokens.

    Args:
        file: its ``tokenizer.json``.
        controls: ids that are no text, beside those that the file calls special.
        size: how many ids the model has; those that the tokenizer does not know are no text.

    Raises:
        FieldError: for a tokenizer whose decoder does not give each token its own text.
    """
    decoder = _Decoder(file.get("decoder"))
    names: list[str | None] = [None] * size
    for token, number in _tokens(file["model"]):
        if number < size:
            names[number] = token
    for added in file.get("added_tokens", ()):
        if added["id"] < size:
            text = None if added["special"] or _PLACEHOLDER.fullmatch(added["content"]) else added["content"]
            names[added["id"]] = text
    texts = [None if name is None or i in controls else decoder.text(name) for i, name in enumerate(names)]
    return Vocabulary(tuple(text or None for text in texts), decoder.drops_space)


def _tokens(model: Mapping[str, Any]) -> Sequence[tuple[str, int]]:
    """Tokens of a model and their ids."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, Mapping):
        return list(vocabulary.items())
    return [(token, number) for number, (token, _) in enumerate(vocabulary)]  # Unigram: with its scores


class _Decoder:
    """How a token's name becomes text."""

    def __init__(self, decoder: Mapping[str, Any] | None):
        steps = [] if decoder is None else decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        kinds = [step["type"] for step in steps]
        self.drops_space = False
        self._bytes: dict[str, int] | None = None
        if kinds == ["ByteLevel"]:
            self._bytes = _byte_level()
            return
        if kinds and kinds[-1] == "Strip" and "Fuse" in kinds:
            self._check(steps[-1]["content"] == " " and steps[-1]["start"] <= 1 and steps[-1]["stop"] == 0, decoder)
            self.drops_space = steps[-1]["start"] == 1
            kinds = kinds[:-1]
        self._check(kinds in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback"]), decoder)
        replace = steps[0]
        self._check(replace["pattern"] == {"String": _SPACE} and replace["content"] == " ", decoder)

    def _check(self, good: bool, decoder: Mapping[str, Any] | None) -> None:
        if not good:
            raise FieldError(
                field="grammar",
                value=decoder,
                allowed="a tokenizer whose tokens have texts of their own: its decoder is ByteLevel, or Replace of "
                f"{_SPACE!r}, ByteFallback and Fuse",
                fix="ask without grammar",
            )

    def text(self, name: str) -> bytes:
        """The bytes of a token."""
        if self._bytes is not None:
            known = [self._bytes.get(character) for character in name]
            # a token with a character that stands for no byte is taken as it is, whole
            return name.encode() if None in known else bytes(byte for byte in known if byte is not None)
        found = _BYTE.fullmatch(name)
        return bytes([int(found[1], 16)]) if found else name.replace(_SPACE, " ").encode()


def _byte_level() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for: GPT-2's table."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
