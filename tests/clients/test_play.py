"""A client that does not do what the page says is found out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.page import CLIENTS, PAGE, Client
from tests.clients.play import play
from triton_repo.demo.examples import Block

SCORED = CLIENTS["lm-evaluation-harness"].score


def outcome(text: str, folder: Path, score: str | None = None) -> tuple[str, ...]:
    client = Client("an example", environment=None, score=score)
    return play(client, [Block(PAGE, "a client", 1, "", text)], "127.0.0.1:9", folder).wrong


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("echo 12000 m  # prints 12000 m", ()),
        ("echo 12 m  # prints 12000 m", ("not printed: 12000 m",)),
        ("echo 1; echo refused >&2; exit 1", ("refused",)),
        ("false | echo 1", ("it said nothing",)),
        ("true", ("printed nothing",)),
        ("echo $UNSET", ("bash: line 1: UNSET: unbound variable", "printed nothing")),
        ("echo ${OPENAI_API_KEY-none}  # prints none", ()),
        ("curl --silent --fail http://127.0.0.1:9000/v1/models", ("it said nothing", "printed nothing")),
    ],
)
def test_an_example(text: str, wrong: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a user's own")
    assert outcome(text, tmp_path) == wrong


@pytest.mark.parametrize(
    ("printed", "wrong"),
    [
        ("|exact_match|↑  |    1|±  |     0|", ()),
        ("|exact_match|↑  |0.975|±  |0.0250|", ()),
        ("|exact_match|↑  |    0|±  |     0|", ("a score of 0.0",)),
        ("Cannot be measured", ("no score",)),
    ],
)
def test_a_score(printed: str, wrong: tuple[str, ...], tmp_path: Path) -> None:
    assert outcome(f"echo '{printed}'", tmp_path, SCORED) == wrong
