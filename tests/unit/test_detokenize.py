"""Streaming text: never half a character, nothing lost, nothing twice."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_diffgemma.tokenizer import Tokenizer
from trtllm_build.runtime.detokenize import Detokenizer

LOADED: dict[Path, Tokenizer] = {}


@settings(max_examples=80, deadline=None)
@given(data=st.data(), text=st.text(max_size=30))
def test_any_cut_gives_the_whole_text(text_checkpoint: Path, data: st.DataObject, text: str) -> None:
    tokenizer = LOADED.setdefault(text_checkpoint, Tokenizer(text_checkpoint))
    ids = tokenizer.encode(text)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=5)))
    stream, parts, start = Detokenizer(tokenizer), [], 0
    for end in cuts:
        parts.append(stream.push(ids[start:end], last=False))
        start = end
    parts.append(stream.push(ids[start:], last=True))
    assert "".join(parts) == tokenizer.decode(ids)
    assert all("\ufffd" not in part for part in parts) or "\ufffd" in text


def test_an_unfinished_character_waits(text_checkpoint: Path) -> None:
    tokenizer = Tokenizer(text_checkpoint)
    ids = tokenizer.encode("a🙂")
    stream = Detokenizer(tokenizer)
    assert stream.push(ids[:-1], last=False) == "a"
    assert stream.preview(ids[-1:]) == "🙂"
    assert stream.push(ids[-1:], last=False) == "🙂"


def test_an_engine_without_tokenizer_gives_no_text() -> None:
    assert Detokenizer(None).push([1, 2], last=True) == ""
