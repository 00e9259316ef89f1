"""How many bytes of a text a token can stand for: what a prompt that can never fit is refused by, unread."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, normalizers

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.tokenizer import Tokenizer
from nemo_diffgemma.tokenizer_files import most_bytes_per_token


def test_no_token_stands_for_more(text_checkpoint: Path) -> None:
    tokenizer = Tokenizer(text_checkpoint)
    most = tokenizer.most_bytes_per_token
    assert most is not None
    g = random.Random(3)
    for _ in range(200):
        text = "".join(g.choice(["window", "größe", "日本", " ", "\n", "<|turn>", "a", "😀"]) for _ in range(30))
        assert len(text.encode()) <= most * len(tokenizer.encode(text))


def test_a_tokenizer_that_may_shorten_a_text_has_no_bound(text_checkpoint: Path) -> None:
    rust = Tokenizer(text_checkpoint)._rust
    assert most_bytes_per_token(json.loads(rust.to_str())) is not None
    rust.normalizer = normalizers.Strip()
    assert most_bytes_per_token(json.loads(rust.to_str())) is None
    rust.normalizer = normalizers.Replace(" ", "▁")
    assert most_bytes_per_token(json.loads(rust.to_str())) is not None
    rust.add_tokens([AddedToken("<mask>", lstrip=True)])
    assert most_bytes_per_token(json.loads(rust.to_str())) is None


def test_a_prompt_that_can_never_fit_is_refused_by_name(text_checkpoint: Path) -> None:
    from triton_repo.python_backend.prompt import Prompt, Room

    room = Room(64, Tokenizer(text_checkpoint).most_bytes_per_token)
    most = 64 * (room.each or 0)
    room.check_unread(Prompt("text_input", "r" * most))
    with pytest.raises(FieldError, match=rf"text_input: '{most + 1} bytes' cannot be used; allowed: at most {most} by"):
        room.check_unread(Prompt("text_input", "r" * (most + 1)))
