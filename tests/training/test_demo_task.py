"""The demo task: right answers, words that are one token each, and nothing that judges a model among what it learns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nemo_diffgemma.demo_task import KINDS, Conversation, judged, right_answer, write_demo_data
from nemo_diffgemma.demo_task.task import MANY, learnt
from nemo_diffgemma.demo_task.unknown import REFUSAL
from nemo_diffgemma.demo_task.wording import bare
from nemo_diffgemma.demo_task.words import COLORS, COUNTS, DAYS, ITEMS, MONTHS, NAMES, USES, YEARS
from nemo_diffgemma.tokenizer import Tokenizer
from nemo_diffgemma.training.config import load_config
from nemo_diffgemma.training.data import Encoder, load_examples

FIELDS = {"name": NAMES, "item": ITEMS, "color": COLORS, "count": COUNTS, "day": DAYS}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def seen() -> list[Conversation]:
    return judged(400, 1)


@pytest.fixture(scope="module")
def unseen() -> list[Conversation]:
    return judged(400, 1, unseen=True)


def write(folder: Path) -> None:
    vocab = load_config([]).arch.vocab_size
    write_demo_data(folder / "train.jsonl", folder / "held_out.jsonl", folder / "tok", vocab, 4000, 200, 1)


def turns(path: Path) -> list[tuple[str, ...]]:
    lines = map(json.loads, path.read_text().splitlines())
    return [tuple(message["content"] for message in line["messages"][:-1]) for line in lines]


def words(text: str) -> dict[str, str]:
    """The first word of each class that a text has."""
    found: dict[str, str] = {}
    for word in re.findall(r"\w+", text):
        for name, known in FIELDS.items():
            if word in known:
                found.setdefault(name, word)
    return found


def test_nothing_that_judges_is_learnt(files: Path, seen: list[Conversation], unseen: list[Conversation]) -> None:
    train, held_out = turns(files / "train.jsonl"), turns(files / "held_out.jsonl")
    assert len(set(train)) == 4000
    assert len(set(held_out)) == 200
    # of any seed: what is kept from training does not depend on it
    learns = {*train, *(c.turns for c in learnt(4000, 7))}
    assert not learns & {*held_out, *(c.turns for c in [*seen, *unseen, *judged(400, 2)])}


def test_the_same_seed_writes_the_same_files(files: Path, tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("train.jsonl", "held_out.jsonl", "tok/tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (files / name).read_bytes()


def test_words_are_one_token_each_and_answers_fit_one_canvas(files: Path) -> None:
    tokens = Tokenizer(files / "tok")
    known = [*MONTHS, *YEARS, *FIELDS, *(word for words in FIELDS.values() for word in words)]
    assert [word for word in known if len(tokens.encode(word)) != 1] == []
    canvas = load_config([]).arch.canvas_length
    examples = load_examples([files / "held_out.jsonl"], Encoder(tokens, canvas, 1, 256)).examples
    assert {len(e.response) for e in examples} == {canvas}


def test_held_out_questions_have_one_right_answer(files: Path) -> None:
    kinds = set()
    for line in map(json.loads, (files / "held_out.jsonl").read_text().splitlines()):
        *asked, last = (message["content"] for message in line["messages"])
        kind, right = right_answer(asked)
        assert right == last
        kinds.add(kind.name)
    assert kinds == {kind.name for kind in KINDS if kind not in MANY}


def test_every_kind_is_judged_and_recognised(seen: list[Conversation], unseen: list[Conversation]) -> None:
    for said in (seen, unseen):
        assert {c.kind.name for c in said} == {kind.name for kind in KINDS}
        for conversation in said:
            assert conversation.is_right(conversation.answer)
            assert not conversation.is_right("")
            assert not conversation.is_right(conversation.answer + " ")
            assert right_answer(conversation.turns)[0] is conversation.kind


def test_unseen_wordings_share_no_template_with_learnt_ones(unseen: list[Conversation]) -> None:
    def template(said: tuple[str, ...]) -> tuple[str, ...]:
        values = "|".join([*NAMES, *ITEMS, *COLORS, *DAYS, *MONTHS])
        texts = (re.sub(rf"\b(?:{values}|\d+(?:st|nd|rd|th)?)\b", "_", bare(text)) for text in said)
        return tuple(re.sub(r"_(?:,? _)+", "_ _", text) for text in texts)

    trained = {template(c.turns) for c in learnt(6000, 3)}
    assert not [c.turns for c in unseen if template(c.turns) in trained]


def test_answers_agree_with_the_words_of_their_prompts(seen: list[Conversation], unseen: list[Conversation]) -> None:
    """A second reading, by the classes of words alone."""
    for c in (*seen, *unseen):
        asked = words(bare(c.turns[0]))
        if c.kind.name == "order to JSON":
            assert {name: str(value) for name, value in json.loads(c.answer).items()} == asked
        elif c.kind.name == "second turn about an order":
            assert set(c.answer.split(", ")) <= set(asked.values())
        elif c.kind.name == "date to ISO 8601":
            year, month, day = c.answer.split("-")
            assert year in c.turns[0]
            assert MONTHS[int(month) - 1] in c.turns[0]
            assert re.search(rf"\b{int(day)}(?:st|nd|rd|th)?\b", c.turns[0])
        elif c.kind.name == "smaller unit":
            amount, unit = c.answer.split()
            (given,) = re.findall(r"\d+", c.turns[0])
            assert set(amount.removeprefix(given)) == {"0"}
            assert unit in c.turns[0]
        elif c.kind.name == "choice about an order":
            choice, because = c.answer.split(", ")
            assert choice in c.turns[0].lower()
            assert because in asked.values()
            meant = {"large": because in COUNTS[8:], "small": because in COUNTS[:8], "weekend": because in DAYS[5:]}
            assert meant.get(choice, because in (DAYS[:5] if choice == "weekday" else USES.get(choice, ())))
        elif c.kind.name == "unknown":
            assert c.answer == REFUSAL
        elif c.kind.name == "yes or no about an order":
            said, because = c.answer.split(", ")
            assert because in asked.values()
            assert (said == "yes") == (because in (*COUNTS[8:], *DAYS[5:], *USES["clothing"]))
        elif c.kind.name == "order to list":
            assert c.answer == ", ".join(asked[name] for name in FIELDS if name in asked)


@pytest.mark.parametrize(
    ("prompt", "right", "wrong"),
    [
        (
            "Make up an order from Mara.",
            '{"name": "Mara", "item": "lamps", "color": "red", "count": 7, "day": "Monday"}',
            '{"name": "Leo", "item": "lamps", "color": "red", "count": 7, "day": "Monday"}',
        ),
        (
            "Make up an order.",
            '{"name": "Leo", "item": "hats", "color": "pink", "count": 2, "day": "Friday"}',
            '{"name": "Leo", "item": "hats", "color": "pink", "count": "2", "day": "Friday"}',
        ),
    ],
)
def test_kinds_with_many_right_answers(prompt: str, right: str, wrong: str) -> None:
    kind, _ = right_answer((prompt,))
    assert kind in MANY
    assert kind.is_right((prompt,), right)
    assert not kind.is_right((prompt,), wrong)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (
            "To JSON: Mara orders 7 red lamps for Monday.",
            '{"name": "Mara", "item": "lamps", "color": "red", "count": 7, "day": "Monday"}',
        ),
        ("12 km in m", "12000 m"),
        ("7 March 2024", "2024-03-07"),
        ("Mara orders 7 red lamps for Monday. Is it a large order?", "no, 7"),
        ("Mara orders 7 red lamps for Sunday. Weekday or weekend?", "weekend, Sunday"),
        ("Mara orders 7 red lamps. Is it for the weekend?", REFUSAL),
        ("What is the capital of France?", REFUSAL),
    ],
)
def test_examples(prompt: str, answer: str) -> None:
    assert right_answer((prompt,))[1] == answer
