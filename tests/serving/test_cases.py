"""What clients send to OpenAI's API, each body of `python -m tests.cases.serving`, answered as is right for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases.serving.play import BODIES, play
from tests.cases.serving.right import BASELINE, RIGHT
from tests.serving.gateway import Running

FILES = sorted(BODIES.glob("*.json"))


@pytest.fixture(scope="module")
def baseline(gateway: Running) -> str:
    return play((BODIES / f"{BASELINE}.json").read_bytes(), gateway.url, RIGHT[BASELINE]).text


def test_every_body_has_a_right_answer() -> None:
    assert {file.stem for file in FILES} == set(RIGHT)


@pytest.mark.server
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_body(file: Path, gateway: Running, baseline: str) -> None:
    found = play(file.read_bytes(), gateway.url, RIGHT[file.stem], baseline)
    assert found.wrong == (), found
