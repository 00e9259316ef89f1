"""The demo task: right answers, and no held-out prompt among the learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_diffgemma.demo_task import KINDS, pairs, write_demo_data
from nemo_diffgemma.tokenizer import Tokenizer
from nemo_diffgemma.training.config import load_config
from nemo_diffgemma.training.data import Encoder, load_examples


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    vocab = load_config([]).arch.vocab_size
    write_demo_data(folder / "train.jsonl", folder / "held_out.jsonl", folder / "tok", vocab, 4000, 200, 1)
    return folder


def prompts(path: Path) -> list[str]:
    return [json.loads(line)["messages"][0]["content"] for line in path.read_text().splitlines()]


def test_train_and_held_out_share_no_prompt(files: Path) -> None:
    train, held_out = prompts(files / "train.jsonl"), prompts(files / "held_out.jsonl")
    assert len(train) == len(set(train)) == 4000
    assert len(held_out) == len(set(held_out)) == 200
    assert not set(train) & set(held_out)


def test_the_same_seed_writes_the_same_files(files: Path, tmp_path: Path) -> None:
    vocab = load_config([]).arch.vocab_size
    write_demo_data(tmp_path / "train.jsonl", tmp_path / "held_out.jsonl", tmp_path / "tok", vocab, 4000, 200, 1)
    for name in ("train.jsonl", "held_out.jsonl", "tok/tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (files / name).read_bytes()


def test_most_answers_fit_one_canvas_and_some_need_two(files: Path) -> None:
    examples = load_examples([files / "held_out.jsonl"], Encoder(Tokenizer(files / "tok"), 32, 1, 256)).examples
    lengths = [len(e.response) for e in examples]
    assert set(lengths) == {32, 64}
    assert lengths.count(32) > 150


def test_answers_are_right_and_every_kind_is_there() -> None:
    found = pairs(400, 3)
    for prompt, answer in found:
        if answer.startswith("{"):
            record = json.loads(answer)
            assert all(str(value) in prompt for value in record.values())
        elif prompt.startswith("Reverse: "):
            assert answer[:-1].split() == prompt[9:-1].split()[::-1]
        elif "-" in answer:
            assert str(int(answer[-2:])) in prompt
            assert answer[:4] in prompt
        else:
            number, unit = answer.split()
            assert prompt.endswith(unit)
            assert int(number) % int(prompt.split()[0]) == 0
    assert len(KINDS) == 4
