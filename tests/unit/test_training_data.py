"""Conversations: what is learnt of them, and what is said of a broken line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.tokenizer import Tokenizer
from nemo_diffgemma.training.data import encode_conversation, load_examples, read_conversations

END, CANVAS = 1, 16


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def jsonl(path: Path, *records: object) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
    return path


@pytest.fixture
def tokenizer(text_checkpoint: Path) -> Tokenizer:
    return Tokenizer(text_checkpoint)


def test_response_is_the_answer_its_end_of_turn_and_filling_to_whole_canvases(tokenizer: Tokenizer) -> None:
    for words in (1, 5, 40):
        answer = "red " * words
        example = encode_conversation([turn("user", "12"), turn("assistant", answer)], tokenizer, CANVAS, END, 999, "x")
        wanted = tokenizer.encode(answer + "<turn|>")
        assert example.response[: len(wanted)] == wanted
        assert set(example.response[len(wanted) :]) <= {END}
        assert len(example.response) % CANVAS == 0
        assert len(example.response) - len(wanted) < CANVAS
        assert example.prompt == tokenizer.chat([turn("user", "12")])


def test_only_the_last_assistant_turn_is_learnt(tokenizer: Tokenizer) -> None:
    talk = [turn("user", "red"), turn("assistant", "green"), turn("user", "blue"), turn("assistant", "chair")]
    example = encode_conversation(talk, tokenizer, CANVAS, END, 999, "x")
    assert example.prompt == tokenizer.chat(talk[:3])
    assert example.response[:2] != tokenizer.encode("green<turn|>")[:2]


def test_long_conversations_lose_their_oldest_exchanges_but_not_the_system_turn(tokenizer: Tokenizer) -> None:
    system = turn("system", "table")
    talk = [system]
    for number in range(20):
        talk += [turn("user", f"red {number}"), turn("assistant", f"blue {number}")]
    example = encode_conversation(talk, tokenizer, CANVAS, END, 120, "x")
    assert len(example) <= 120
    kept = [n for n in range(20) if example.prompt == tokenizer.chat([system, *talk[1 + 2 * n : -1]])]
    assert len(kept) == 1
    assert kept[0] > 0


def test_a_question_that_does_not_fit_is_refused(tokenizer: Tokenizer) -> None:
    talk = [turn("user", "red " * 500), turn("assistant", "blue")]
    with pytest.raises(FieldError, match=r"file:7: .* tokens.*at most data.max_tokens 120.*raise it"):
        encode_conversation(talk, tokenizer, CANVAS, END, 120, "file:7")


GOOD = {"messages": [turn("user", "red"), turn("assistant", "blue")]}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"messages": [', r"bad.jsonl:2: .*column 15.*allowed: a JSON object"),
        ([1], r"bad.jsonl:2: \[1\] cannot be used"),
        ({"message": []}, r"bad.jsonl:2: messages: None.*2 or more"),
        ({"messages": [turn("user", "x")]}, r"bad.jsonl:2: messages: .*2 or more"),
        ({"messages": [turn("human", "x"), turn("assistant", "y")]}, r"2: messages\[0\].role: 'human'.*system, user"),
        ({"messages": [turn("user", "x"), {"role": "assistant"}]}, r"2: messages\[1\].content: None.*text"),
        ({"messages": [turn("user", "x"), turn("assistant", "")]}, r"2: messages\[1\].content: ''"),
        ({"messages": [turn("assistant", "x"), turn("user", "y")]}, r"2: messages\[-1\].role: 'user'.*assistant"),
        ({"messages": ["x", "y"]}, r"2: messages\[0\]: 'x'.*role and content"),
    ],
)
def test_a_broken_line_names_file_line_and_field(bad: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(FieldError, match=said):
        read_conversations(jsonl(tmp_path / "bad.jsonl", GOOD, bad))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FieldError, match=r"empty.jsonl: 'no line'.*at least one conversation"):
        read_conversations(jsonl(tmp_path / "empty.jsonl", ""))


def test_empty_lines_are_skipped(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "good.jsonl", GOOD, "", GOOD)
    assert len(load_examples(path, tokenizer, CANVAS, END, 200)) == 2
