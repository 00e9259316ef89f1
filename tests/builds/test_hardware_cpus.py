"""What serves an engine leaves it a CPU, where there are several."""

from __future__ import annotations

import pytest

from trtllm_build import hardware


@pytest.mark.parametrize(("have", "left"), [({0, 1, 2, 6, 7}, {0, 1, 2, 6}), ({2, 3}, {2}), ({5}, {5})])
def test_all_but_one_of_several(monkeypatch: pytest.MonkeyPatch, have: set[int], left: set[int]) -> None:
    monkeypatch.setattr(hardware, "available_cpus", lambda: frozenset(have))
    assert hardware.beside_the_engine() == left
