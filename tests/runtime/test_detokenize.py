"""Streaming text: never half a character, nothing lost, nothing twice, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.new_tokenizer import train_tokenizer
from nemo_diffgemma.tokenizer import Tokenizer
from trtllm_build.runtime.detokenize import Detokenizer, Piece

WORDS = ["red", "green", "blue", "größe", "naïve", "日本", "12", "345", "\ufffd"]
SPECIAL = ["<pad>", "<unk>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TEXTS = st.lists(st.sampled_from([*" ab\n\ufffd", "é", "日", "🙂", "👩‍👩‍👧", "ab ab", "<pad>"])).map("".join)
CUTS = st.lists(st.integers(0, 60), max_size=6)


def metaspace() -> RustTokenizer:
    """SentencePiece without byte tokens: the decoder drops the first space."""
    pieces = ["▁", "▁▁", "a", "b", "é", "ab", "▁a", "▁ab", "\n", "\ufffd"]
    inner = RustTokenizer(models.Unigram([(p, -1.0) for p in [*SPECIAL, *pieces]], 1, byte_fallback=False))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return inner


def gemma(*more: decoders.Decoder) -> RustTokenizer:
    """As Gemma's: characters out of the vocabulary are byte tokens, and one wrong byte spoils all its neighbours."""
    pieces = [*SPECIAL, *BYTES, "▁", "▁▁", "a", "b", "ab", "▁a", "é", "\ufffd"]
    merges = [("▁", "▁"), ("a", "b"), ("▁", "a")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    inner = RustTokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *more])
    return inner


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """One of each kind of decoder; ``bytes`` is the project's own."""
    folder = tmp_path_factory.mktemp("tokenizers")
    train_tokenizer([" ".join(WORDS)] * 3, 290, folder / "bytes")
    kinds = {"metaspace": metaspace(), "gemma": gemma(), "llama": gemma(decoders.Strip(" ", 1, 0))}
    for name, inner in kinds.items():
        fast = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>")
        fast.save_pretrained(folder / name)
    return {name: Tokenizer(folder / name) for name in ("bytes", *kinds)}


@pytest.fixture(params=["bytes", "metaspace", "gemma", "llama"], scope="session")
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers[request.param]


def draw_ids(data: st.DataObject, tokenizer: Tokenizer) -> list[int]:
    """Tokens of a text, with any tokens put in: special ones, bytes that are no character."""
    ids = tokenizer.encode(data.draw(TEXTS | st.text(max_size=20)))
    for place, extra in data.draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 270)), max_size=8)):
        ids.insert(place, extra)
    return ids


def stream(detokenizer: Detokenizer, ids: Sequence[int], cuts: Sequence[int]) -> list[Piece]:
    """Push ``ids`` in parts, until a stop."""
    pieces, start = [], 0
    for end in [*sorted(min(cut, len(ids)) for cut in cuts), None]:
        pieces.append(detokenizer.push(ids[start:end], last=end is None))
        if pieces[-1].stopped:
            break
        start = end or 0
    return pieces


def joined(pieces: Sequence[Piece]) -> tuple[str, list[int]]:
    return "".join(p.text for p in pieces), [token for p in pieces for token in p.token_ids]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), cuts=CUTS)
def test_any_cut_gives_the_whole_text(tokenizer: Tokenizer, data: st.DataObject, cuts: list[int]) -> None:
    ids = draw_ids(data, tokenizer)
    pieces = stream(Detokenizer(tokenizer), ids, cuts)
    assert joined(pieces) == (tokenizer.decode(ids), ids)
    assert [len(p.token_ids) for p in pieces[:-1]] == [b - a for a, b in spans(cuts, len(ids))]


def spans(cuts: Sequence[int], length: int) -> list[tuple[int, int]]:
    ends = sorted(min(cut, length) for cut in cuts)
    return list(zip([0, *ends], ends, strict=False))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), cuts=CUTS)
def test_a_stop_string_cuts_the_same_text_whatever_the_cuts(
    tokenizer: Tokenizer, data: st.DataObject, cuts: list[int]
) -> None:
    ids = draw_ids(data, tokenizer)
    text = tokenizer.decode(ids)
    some = st.sampled_from(["ab", "b ", "ab a", "aba", "\n", "é", "🙂a", "ba", "\ufffd", " "])
    slices = st.tuples(st.integers(0, len(text)), st.integers(1, 6)).map(lambda s: text[s[0] : s[0] + s[1]] or "a")
    stop = data.draw(st.lists(some | slices, min_size=1, max_size=3))
    end = min((text.find(s) for s in stop if s in text), default=None)
    pieces = stream(Detokenizer(tokenizer, stop), ids, cuts)
    shown, given_ids = joined(pieces)
    assert shown == text[:end]
    assert pieces[-1].stopped == (end is not None)
    assert not any(p.stopped for p in pieces[:-1])
    if end is None:
        assert given_ids == ids
    else:
        count = max(n for n in range(len(ids) + 1) if shown.startswith(tokenizer.decode(ids[:n])))
        assert given_ids == ids[:count]
    for so_far in range(len(pieces)):
        text_so_far, ids_so_far = joined(pieces[:so_far])
        assert text_so_far.startswith(tokenizer.decode(ids_so_far))


@settings(max_examples=100, deadline=None)
@given(data=st.data(), cuts=CUTS)
def test_preview_is_what_a_last_push_would_add(tokenizer: Tokenizer, data: st.DataObject, cuts: list[int]) -> None:
    first, then = draw_ids(data, tokenizer), draw_ids(data, tokenizer)
    stop = data.draw(st.lists(st.sampled_from(["ab", "b ", "é"]), max_size=2))
    detokenizer = Detokenizer(tokenizer, stop)
    if stream_open(detokenizer, first, cuts):
        preview = detokenizer.preview(then)
        piece = detokenizer.push(then, last=True)
        assert preview == (piece.text if piece.stopped else piece.text.rstrip("\ufffd"))


def stream_open(detokenizer: Detokenizer, ids: Sequence[int], cuts: Sequence[int]) -> bool:
    """Push ``ids`` in parts, none of them the last. False when that stopped."""
    bounds = [*spans(cuts, len(ids)), (min(max(cuts, default=0), len(ids)), len(ids))]
    return not any(detokenizer.push(ids[a:b], last=False).stopped for a, b in bounds)


@pytest.mark.parametrize("kind", ["bytes", "gemma"])
def test_an_unfinished_character_waits(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    ids = tokenizers[kind].encode("a🙂a")
    detokenizer = Detokenizer(tokenizers[kind])
    assert detokenizer.push(ids[:-2], last=False) == Piece("a", tuple(ids[:-2]), False)
    assert detokenizer.preview(()) == ""
    assert detokenizer.preview(ids[-2:]) == "🙂a"
    assert detokenizer.push(ids[-2:], last=False).text == "🙂a"


def test_a_last_unfinished_character_shows(tokenizers: dict[str, Tokenizer]) -> None:
    ids = tokenizers["bytes"].encode("a🙂")[:-1]
    assert Detokenizer(tokenizers["bytes"]).push(ids, last=True).text == "a\ufffd"


def test_the_replacement_character_itself_shows(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert "".join(detokenizer.push([i], last=False).text for i in tokenizer.encode("b\ufffda")) == "b\ufffda"


def test_what_may_begin_a_stop_string_waits(tokenizers: dict[str, Tokenizer]) -> None:
    encode = tokenizers["bytes"].encode
    detokenizer = Detokenizer(tokenizers["bytes"], ["END"])
    assert detokenizer.push(encode("a E"), last=False).text == "a "
    assert detokenizer.preview(encode("Nxy")) == "ENxy"
    assert detokenizer.preview(encode("NDxy")) == ""
    assert detokenizer.push(encode("N"), last=False) == Piece("", (), False)
    assert detokenizer.push(encode("xE"), last=False) == Piece("ENx", (*encode("E"), *encode("N"), *encode("x")), False)
    assert detokenizer.push((), last=True) == Piece("E", tuple(encode("E")), False)


def test_waiting_in_the_middle_of_a_run_of_bytes(tokenizers: dict[str, Tokenizer]) -> None:
    encode = tokenizers["gemma"].encode
    detokenizer = Detokenizer(tokenizers["gemma"], ["日ab"])
    assert detokenizer.push(encode("日日a"), last=False) == Piece("日", tuple(encode("日")), False)
    assert detokenizer.push(encode("a"), last=False) == Piece("日aa", tuple(encode("日aa")), False)


def test_a_token_partly_in_the_stop_string_is_not_returned(tokenizers: dict[str, Tokenizer]) -> None:
    ids = tokenizers["gemma"].encode("b aa")
    assert [tokenizers["gemma"].decode([i]) for i in ids] == ["b", " a", "a"]
    assert Detokenizer(tokenizers["gemma"], ["aa"]).push(ids, last=False) == Piece("b ", tuple(ids[:1]), True)


def test_the_stop_string_that_starts_first_counts(tokenizers: dict[str, Tokenizer]) -> None:
    encode = tokenizers["bytes"].encode
    detokenizer = Detokenizer(tokenizers["bytes"], ["b", "abc"])
    assert detokenizer.push(encode("xab"), last=False).text == "x"
    assert detokenizer.push(encode("c"), last=False) == Piece("", (), True)
    assert Detokenizer(tokenizers["bytes"], ["b", "abc"]).push(encode("xab"), last=True).text == "xa"
    assert Detokenizer(tokenizers["bytes"], ["ab", "abc"]).push(encode("xab"), last=False).stopped


def test_nothing_may_follow_a_stop(tokenizers: dict[str, Tokenizer]) -> None:
    detokenizer = Detokenizer(tokenizers["bytes"], ["a"])
    assert detokenizer.push(tokenizers["bytes"].encode("a"), last=False).stopped
    with pytest.raises(RuntimeError, match="after a stop string"):
        detokenizer.push((), last=True)


@pytest.mark.parametrize("text", ["ab é", "日", "<pad>"])
@pytest.mark.parametrize("stop", [(), ("stop",)])
def test_a_push_does_not_decode_all_earlier_tokens(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, text: str, stop: tuple[str, ...]
) -> None:
    canvas, end = tokenizer.encode(text) * 8, () if text == "<pad>" else tokenizer.encode("a")
    detokenizer, lengths, decode = Detokenizer(tokenizer, stop), [], tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: lengths.append(len(ids)) or decode(ids))
    for _ in range(50):
        detokenizer.push([*canvas, *end], last=False)
    assert 0 < max(lengths) <= 2 * len(canvas) + 8


def test_an_engine_without_tokenizer_gives_no_text() -> None:
    detokenizer = Detokenizer(None)
    assert detokenizer.preview([1, 2]) == ""
    assert detokenizer.push([1, 2], last=False) == Piece("", (1, 2), False)
    with pytest.raises(FieldError, match="stop: "):
        Detokenizer(None, ["a"])
