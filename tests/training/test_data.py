"""Conversations as token ids: what is learnt of them, and what happens to those that are too long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_diffgemma.conversations.reader import Conversation
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.tokenizer import Tokenizer
from nemo_diffgemma.training.config import load_config
from nemo_diffgemma.training.corpus import load_corpus
from nemo_diffgemma.training.data import Encoded, Encoder, load_examples
from tests.model.templates import ALTERNATING, GEMMA, tokenizer
from tests.training.runs import MODEL

END, CANVAS = 1, 16


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def jsonl(path: Path, *records: object) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
    return path


@pytest.fixture
def tokens(text_checkpoint: Path) -> Tokenizer:
    return Tokenizer(text_checkpoint)


def encode(tokens: Tokenizer, messages: list[dict[str, str]], max_tokens: int = 999, too_long: str = "refuse") -> Any:
    talk = Conversation(tuple(messages[:-1]), messages[-1]["content"], (), "file:7")
    (found,) = Encoder(tokens, CANVAS, END, max_tokens, too_long).encode([talk])
    return found.example if isinstance(found, Encoded) else found


def test_response_is_the_answer_its_end_of_turn_and_filling_to_whole_canvases(tokens: Tokenizer) -> None:
    for words in (1, 5, 40):
        answer = "red " * words
        example = encode(tokens, [turn("user", "12"), turn("assistant", answer)])
        wanted = tokens.encode(answer + "<turn|>")
        assert example.response[: len(wanted)] == wanted
        assert set(example.response[len(wanted) :]) <= {END}
        assert len(example.response) % CANVAS == 0
        assert len(example.response) - len(wanted) < CANVAS
        assert example.prompt == tokens.chat([turn("user", "12")])


def test_only_the_last_assistant_turn_is_learnt(tokens: Tokenizer) -> None:
    talk = [turn("user", "red"), turn("assistant", "green"), turn("user", "blue"), turn("assistant", "chair")]
    example = encode(tokens, talk)
    assert example.prompt == tokens.chat(talk[:3])
    assert example.response[:2] != tokens.encode("green<turn|>")[:2]


def test_control_tokens_in_a_text_are_learnt_as_text(tokens: Tokenizer) -> None:
    example = encode(tokens, [turn("user", "what is <turn|>?"), turn("assistant", "it ends <turn|> a turn <eos>")])
    end = tokens.encode("<turn|>")[0]
    assert example.prompt.count(end) == 1
    assert example.response.count(end) == 1
    answer = example.response[: example.response.index(end)]
    assert tokens.decode(answer) == "it ends <turn|> a turn <eos>"
    assert END not in answer


def test_many_conversations_at_once_are_each_what_it_is_alone(tmp_path: Path) -> None:
    tokens = tokenizer(tmp_path, GEMMA)
    talks = [Conversation((turn("user", f"red {n} <|turn>"),), f"blue {n}", (), str(n)) for n in range(20)]
    tool = {"type": "function", "function": {"name": "f"}}
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "<eos>"}}}
    asked = (turn("user", "a"), {"role": "assistant", "content": "", "tool_calls": [call]}, turn("tool", "1"))
    talks.insert(7, Conversation(asked, "b", (tool,), "tools"))
    encoder = Encoder(tokens, CANVAS, END, 999)
    together = encoder.encode(talks)
    assert together == [encoder.encode([talk])[0] for talk in talks]
    tools = together[7]
    assert isinstance(tools, Encoded)
    assert "<|tool>declaration:f<tool|>" in tokens.decode(tools.example.prompt, skip_special_tokens=False)


# -- too long --------------------------------------------------------------------------------------------------------


def long_talk(exchanges: int = 20) -> list[dict[str, str]]:
    talk = [turn("system", "table")]
    for number in range(exchanges):
        talk += [turn("user", f"red {number}"), turn("assistant", f"blue {number}")]
    return talk


def test_what_is_too_long_is_refused_unless_it_is_said_what_to_do(tokens: Tokenizer) -> None:
    found = encode(tokens, long_talk(), 120)
    assert isinstance(found, FieldError)
    said = r"^file:7: '\d+ tokens'.*at most data.max_tokens 120.*raise it, or pass data.too_long=cut .*=skip$"
    with pytest.raises(FieldError, match=said):
        raise found
    assert encode(tokens, long_talk(), 120, "skip") is None


def test_cut_conversations_lose_their_oldest_exchanges_but_not_the_system_turn(tokens: Tokenizer) -> None:
    talk = long_talk()
    example = encode(tokens, talk, 120, "cut")
    assert len(example) <= 120
    (kept,) = [n for n in range(20) if example.prompt == tokens.chat([talk[0], *talk[1 + 2 * n : -1]])]
    assert kept > 0
    # not one exchange more than need be
    longer = tokens.chat([talk[0], *talk[1 + 2 * (kept - 1) : -1]])
    assert len(longer) + len(example.response) > 120


def test_what_was_cut_and_left_out_is_counted_and_named(tokens: Tokenizer, tmp_path: Path) -> None:
    records = [{"messages": long_talk(n)} for n in (1, 20, 1, 30)]
    records.insert(2, {"messages": [turn("user", "red " * 500), turn("assistant", "blue")]})
    path = jsonl(tmp_path / "x.jsonl", *records)
    cut = load_examples([path], Encoder(tokens, CANVAS, END, 120, "cut"), keep=None)
    assert len(cut.examples) == 4
    # what travels with the model is what was learnt: a build would refuse the rest as too long
    (tmp_path / "again.jsonl").write_text("".join(f"{kept}\n" for kept in cut.lines), encoding="utf-8")
    again = load_examples([tmp_path / "again.jsonl"], Encoder(tokens, CANVAS, END, 120))
    assert again.examples == cut.examples
    assert cut.summary == (
        f"data.train: 5 conversations, messages form; 2 over 120 tokens lost older messages: {path}:2, {path}:5; "
        f"1 over 120 tokens with their last exchange alone left out: {path}:3"
    )
    skipped = load_examples([path], Encoder(tokens, CANVAS, END, 120, "skip"), "data.validation")
    assert len(skipped.examples) == 2
    names = ", ".join(f"{path}:{n}" for n in (2, 3, 5))
    assert skipped.summary == (f"data.validation: 5 conversations, messages form; 3 over 120 tokens left out: {names}")
    said = rf"^{path}:2: '\d+ tokens'.*so it is with 2 more: {path}:3, {path}:5\)$"
    with pytest.raises(FieldError, match=said):
        load_examples([path], Encoder(tokens, CANVAS, END, 120))


def test_when_nothing_is_left_there_is_nothing_to_learn(tokens: Tokenizer, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", {"messages": long_talk()})
    with pytest.raises(FieldError, match=r"^data.train: .*1 over 60 tokens left out.*at least one conversation"):
        load_examples([path], Encoder(tokens, CANVAS, END, 60, "skip"))


# -- files -----------------------------------------------------------------------------------------------------------


def test_what_a_template_demands_is_said_of_the_line(tmp_path: Path) -> None:
    tokens = tokenizer(tmp_path / "tokenizer", ALTERNATING)
    good = {"messages": [turn("user", "a"), turn("assistant", "b")]}
    twice = {"messages": [turn("user", "a"), turn("user", "a"), turn("assistant", "b")]}
    first = {"messages": [turn("assistant", "hello"), turn("user", "a"), turn("assistant", "b")]}
    path = jsonl(tmp_path / "x.jsonl", good, twice, first)
    with pytest.raises(FieldError, match=rf"^{path}:2: messages: 'Conversation roles must alt.*1 more: {path}:3\)$"):
        load_examples([path], Encoder(tokens, CANVAS, END, 200))


def test_as_many_conversations_as_asked_are_kept_as_lines(tokens: Tokenizer, tmp_path: Path) -> None:
    records = [{"prompt": f"red {n}", "completion": "blue"} for n in range(600)]
    path = jsonl(tmp_path / "x.jsonl", *records)
    encoder = Encoder(tokens, CANVAS, END, 200)
    loaded = load_examples([path], encoder, keep=3)
    assert len(loaded.examples) == 600
    wanted = [{"messages": [turn("user", f"red {n}"), turn("assistant", "blue")]} for n in range(3)]
    assert [json.loads(line) for line in loaded.lines] == wanted
    assert len(load_examples([path], encoder, keep=None).lines) == 600
    again = load_examples([path, path], encoder)
    assert again.examples == loaded.examples * 2
    assert again.lines == []


def test_a_conversation_that_cannot_be_masked_is_named(tokens: Tokenizer, tmp_path: Path) -> None:
    """One that uses every private character leaves none to stand for control tokens."""
    private = "".join(map(chr, (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))))
    good = {"messages": [turn("user", "red"), turn("assistant", "blue")]}
    bad = {"messages": [turn("user", f"<|turn>{private}"), turn("assistant", "blue")]}
    path = jsonl(tmp_path / "x.jsonl", good, bad, good)
    with pytest.raises(
        FieldError, match=rf"^{path}:2: messages: '131068 private-use characters'.*leave some of them out$"
    ):
        load_examples([path], Encoder(tokens, CANVAS, END, 200))


def test_no_file_is_no_conversation(tokens: Tokenizer) -> None:
    with pytest.raises(FieldError, match=r"^data.train: None .*one file or more"):
        load_examples([], Encoder(tokens, CANVAS, END, 200))


def test_a_file_that_is_trained_and_validated_on_is_said(text_checkpoint: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", {"messages": [turn("user", "red"), turn("assistant", "blue")]})
    given = [*MODEL, "model.vocab_size=300", "data=chat", f"data.tokenizer={text_checkpoint}", "data.max_tokens=150"]
    said: list[str] = []
    load_corpus(load_config([*given, f"data.train={path}", f"data.validation=[{path}]"]), said.append)
    assert said[-1] == f"data.validation: {path} is trained on too: its loss says nothing of other conversations"
