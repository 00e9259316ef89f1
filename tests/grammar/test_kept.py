"""What is kept of grammars is bounded, and of those that were asked for last."""

from __future__ import annotations

from trtllm_build.grammar import kept
from trtllm_build.grammar.kept import Kept


def test_those_asked_for_last_are_kept() -> None:
    found = Kept[int]()
    for i in range(kept.MOST_KEPT):
        found.keep(i, i, 1)
    assert found.find(0) == 0
    found.keep("new", -1, 1)
    assert (found.find(0), found.find(1), found.find("new")) == (0, None, -1)


def test_they_have_so_many_bytes_together() -> None:
    found = Kept[int]()
    for i in range(3):
        found.keep(i, i, kept.MOST_BYTES // 2)
    assert [found.find(i) for i in range(3)] == [None, 1, 2]
    found.keep("huge", 4, 2 * kept.MOST_BYTES)
    assert [found.find(key) for key in (1, 2, "huge")] == [None, None, 4]


def test_the_first_that_was_brought_stays() -> None:
    found = Kept[list[int]]()
    first = found.keep("a", [1], 1)
    assert found.keep("a", [1], 1) is first
