"""A small sweep over random distributions; the large one is a command: ``python -m tests.grammar.sweep``."""

from __future__ import annotations

from tests.grammar.sweep import sweep


def test_texts_of_random_distributions_are_valid_in_one_to_three_canvases() -> None:
    found = sweep(texts=60, count=10, seed=1)
    assert found == {1: 20, 2: 20, 3: 20}
