"""The bytes of tokens put together are what the tokenizer decodes: byte-level, and SentencePiece with byte fallback."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from transformers import PreTrainedTokenizerFast

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.new_tokenizer import train_tokenizer
from nemo_diffgemma.tokenizer import Tokenizer
from trtllm_build.grammar.vocabulary import Vocabulary, read_vocabulary

_GEMMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def gemma_like(directory: Path, steps: list[object] = _GEMMA) -> Tokenizer:
    """SentencePiece's BPE as Gemma has it: spaces as ▁, bytes for what it lacks, control and unused tokens."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]", "<unused0>", "<unused17>"]
    names += [f"<0x{byte:02X}>" for byte in range(256)]
    names += ["▁", "▁▁", "a", "b", "ab", "▁ab", "é", "日", "日本", "😀", "\n", '"', '":', "▁▁▁a", "<0xZZ>", "0x", "本"]
    rust = RustTokenizer(
        models.BPE(
            {name: i for i, name in enumerate(names)}, [("a", "b"), ("▁", "ab")], unk_token="<unk>", byte_fallback=True
        )
    )
    rust.normalizer = normalizers.Replace(" ", "▁")
    rust.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    rust.decoder = decoders.Sequence(steps)
    rust.add_special_tokens([AddedToken(name, special=True) for name in names[:4]])
    rust.add_tokens([AddedToken(name, special=False, normalized=False) for name in [*names[4:8], "<table>", "   "]])
    rust.add_tokens([AddedToken("<|turn>", special=False), AddedToken("<turn|>", special=True)])
    fast = PreTrainedTokenizerFast(tokenizer_object=rust, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    fast.save_pretrained(str(directory))
    return Tokenizer(directory)


def vocabulary_of(tokenizer: Tokenizer, more: int = 0) -> Vocabulary:
    return read_vocabulary(tokenizer.definition, tokenizer.control_ids, len(tokenizer._inner) + more)


def check_decoding(tokenizer: Tokenizer, vocabulary: Vocabulary, whole_only: bool) -> None:
    """Random rows of tokens that have a text; with ``whole_only`` where the bytes are no UTF-8 nothing is promised."""
    g = random.Random(6)
    known = [i for i, text in enumerate(vocabulary.texts) if text]
    short = [i for i in known if len(vocabulary.texts[i] or b"") == 1]
    compared = 0
    for _ in range(3000):
        ids = g.choices(g.choice([known, known, short[:128]]), k=g.randint(1, 6))
        if g.random() < 0.3:  # a character out of single bytes
            at = {vocabulary.texts[i]: i for i in short}
            ids[g.randint(0, len(ids)) :] = [at[bytes([b])] for b in g.choice("é日😀 a").encode() if bytes([b]) in at]
        data = b"".join(vocabulary.texts[i] or b"" for i in ids)
        if vocabulary.drops_space:
            data = data.removeprefix(b" ")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            if whole_only:
                continue
            text = data.decode(errors="replace")
        compared += 1
        assert tokenizer.decode(ids) == text, [vocabulary.texts[i] for i in ids]
    assert compared > 1000


def test_of_a_tokenizer_like_the_demos(tmp_path: Path) -> None:
    train_tokenizer(["red green größe 日本 12 345 window"] * 3, 285, tmp_path)
    tokenizer = Tokenizer(tmp_path)
    vocabulary = vocabulary_of(tokenizer, more=3)
    check_decoding(tokenizer, vocabulary, whole_only=False)
    assert [i for i, text in enumerate(vocabulary.texts) if text is None] == [
        *sorted(tokenizer.control_ids),
        *range(len(tokenizer._inner), len(tokenizer._inner) + 3),
    ]
    assert {bytes([byte]) for byte in range(256)} <= set(vocabulary.texts)


def test_of_a_tokenizer_like_gemmas(tmp_path: Path) -> None:
    tokenizer = gemma_like(tmp_path)
    vocabulary = vocabulary_of(tokenizer)
    check_decoding(tokenizer, vocabulary, whole_only=True)
    texts = {name: vocabulary.texts[i] for name, i in tokenizer._rust.get_vocab().items()}
    for name in ("<pad>", "<eos>", "<unk>", "<mask>", "[multimodal]", "<unused0>", "<unused17>", "<|turn>", "<turn|>"):
        assert texts[name] is None, name
    assert texts["▁ab"] == b" ab"
    assert texts["<0xE6>"] == b"\xe6"
    assert texts["<0xZZ>"] == b"<0xZZ>"
    assert texts["<table>"] == b"<table>"
    assert texts["   "] == b"   "


def test_of_one_that_drops_a_first_space(tmp_path: Path) -> None:
    tokenizer = gemma_like(tmp_path, [*_GEMMA, decoders.Strip(" ", 1, 0)])
    vocabulary = vocabulary_of(tokenizer)
    assert vocabulary.drops_space
    check_decoding(tokenizer, vocabulary, whole_only=True)


@pytest.mark.parametrize(
    "steps",
    [
        [decoders.Metaspace()],
        [decoders.WordPiece()],
        [decoders.Strip(" ", 1, 0), *_GEMMA],
        [*_GEMMA, decoders.Strip(" ", 2, 0)],
        [decoders.Replace("_", " "), decoders.ByteFallback(), decoders.Fuse()],
    ],
)
def test_other_decoders_are_refused(tmp_path: Path, steps: list[object]) -> None:
    with pytest.raises(FieldError, match="grammar: .*tokenizer whose tokens have texts of their own"):
        vocabulary_of(gemma_like(tmp_path, steps))


def test_the_key_tells_vocabularies_apart() -> None:
    keys = [
        Vocabulary(texts, drops).key
        for texts in ((b"a", b"bc"), (b"ab", b"c"), (b"a", None))
        for drops in (False, True)
    ]
    assert len(set(keys)) == len(keys)
    assert Vocabulary((b"a", b"bc")).key == keys[0]
