"""What a tokenizer's files say: read as transformers reads them, whoever wrote them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.tokenizer_names import tokenizer_files

MARKER = re.compile(r"<\|[^\s<>]{1,40}>|<[^\s<>]{1,40}\|>|<(?:start|end)_of_\w+>")
"""How control tokens of this family look, whatever a tokenizer's file says of them."""


def load_files(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder.

    Raises:
        FieldError: when transformers makes none of its files, or would pass one over that is there by name alone.
    """
    tokenizer_files(directory, "tokenizer")
    try:
        return _load(directory)
    except Exception as error:  # of whatever kind: several libraries read these files
        raise FieldError(
            field="tokenizer",
            value=f"{directory}: {type(error).__name__}: {' '.join(str(error).split())}",
            allowed="files that transformers can load (tokenizer.json, tokenizer_config.json, chat_template.jinja)",
            fix="download or export the checkpoint again",
        ) from error


def _load(directory: Path) -> PreTrainedTokenizerFast:
    """What ``AutoTokenizer`` makes of a folder.

    One of the class that is no model's own is loaded without ``AutoTokenizer``, whose import takes a process longer
    than everything else it imports.
    """
    try:
        config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
        plain = config.get("tokenizer_class") == PreTrainedTokenizerFast.__name__ and "auto_map" not in config
    except (OSError, ValueError, AttributeError):
        plain = False
    if plain:
        return PreTrainedTokenizerFast.from_pretrained(str(directory))
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(directory))


def control_tokens(inner: PreTrainedTokenizerFast, template: str) -> dict[str, int]:
    """Control tokens and their ids: what the tokenizer's file calls special, looks like it, or the template writes."""
    special = set(inner.all_special_tokens)
    found = {}
    for number, token in inner.backend_tokenizer.get_added_tokens_decoder().items():
        text = token.content
        marker = MARKER.fullmatch(text) is not None or (text[:1] in ("<", "[") and text in template)
        # runs of spaces and line ends are added tokens of Gemma's, and text
        if text.strip() and (token.special or text in special or marker):
            found[text] = number
    return found


def most_bytes_per_token(file: Mapping[str, Any]) -> int | None:
    """Of a ``tokenizer.json``; None where a text may shrink before, or any run of it become one token."""
    model = file["model"]
    steps: list[Mapping[str, Any]] = []
    for part in (file["normalizer"], file["pre_tokenizer"]):
        found = part or {"type": "Sequence"}
        steps += found.get("normalizers", found.get("pretokenizers", [])) if found["type"] == "Sequence" else [found]
    if model["type"] != "BPE" or not all(_keeps_bytes(step) for step in steps):
        return None
    if any(token["lstrip"] or token["rstrip"] for token in file["added_tokens"]):
        return None
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    bytes_ = pre_tokenizers.ByteLevel.alphabet() if byte_level else [f"<0x{i:02X}>" for i in range(256)]
    if not (byte_level or model["byte_fallback"]) or not set(bytes_) <= model["vocab"].keys():
        return None  # what the vocabulary does not have becomes unknown tokens, of any length
    return max(len(text.encode()) for text in (*model["vocab"], *(token["content"] for token in file["added_tokens"])))


def _keeps_bytes(step: Mapping[str, Any]) -> bool:
    """Whether a step before the model never makes a text shorter."""
    if step["type"] == "Split":
        return bool(step["behavior"] != "Removed")
    if step["type"] == "Replace":
        old = step["pattern"].get("String")
        return old is not None and len(old.encode()) <= len(step["content"].encode())
    return bool(step["type"] == "ByteLevel")
