"""What is asked: a file of prompts, or token ids drawn at random."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_diffgemma.errors import FieldError, require

Inputs = dict[str, Any]
Prompts = Callable[[int], Inputs]
"""Inputs of the request of a number, from 0."""

# Ids that every vocabulary has, above those that tokenizers give to special tokens.
_SYNTHETIC_IDS = range(64, 256)


def from_file(path: Path) -> Prompts:
    """The prompts of a file, in turn, each as a conversation for the checkpoint's chat template.

    Args:
        path: a prompt a line: ``{"messages": [{"role": ..., "content": ...}, ...]}``, of which an answer at the end is
            left out, ``{"prompt": "..."}``, or plain text.

    Raises:
        FieldError: for a file that cannot be read or has no prompt, and for a line of another shape.
    """
    try:
        # JSON lines end at a line feed; a text may hold what Python takes for a line's end too
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else error.strerror
        raise FieldError("prompts", str(path), f"a text file ({reason})", "name one that exists") from error
    found = [_messages(line, f"prompts:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    require(bool(found), "prompts", str(path), "at least one line with a prompt", "write one prompt a line")
    return lambda index: {"messages": found[index % len(found)]}


def synthetic(tokens: int, seed: int) -> Prompts:
    """Prompts of ``tokens`` token ids each, drawn at random: no two begin alike, so no cache is reused."""

    def inputs(index: int) -> Inputs:
        return {"input_ids": random.Random(f"{seed}:{index}").choices(_SYNTHETIC_IDS, k=tokens)}

    return inputs


def _messages(line: str, field: str) -> list[dict[str, str]]:
    if not line.lstrip().startswith("{"):
        return _said(line)
    shape = '{"messages": [{"role": "user", "content": "..."}]} or {"prompt": "..."}'
    try:
        value = json.loads(line)
    except ValueError as error:
        raise FieldError(field, line, shape, f"correct the JSON: {error}") from error
    if isinstance(value.get("prompt"), str):
        return _said(value["prompt"])
    messages = value.get("messages")
    good = isinstance(messages, list) and all(_is_message(message) for message in messages)
    require(good, field, line, shape, "correct that line")
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    require(bool(messages), field, line, shape, "give it something that is asked")
    return list(messages)


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("role", "content"))


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
