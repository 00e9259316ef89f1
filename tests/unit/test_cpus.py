"""CPUs that are the engine's alone: a proper part of those that this process has."""

from __future__ import annotations

import pytest

from nemo_diffgemma.errors import FieldError
from trtllm_build import cpus


@pytest.fixture
def six(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "available", lambda: frozenset({0, 1, 2, 3, 6, 7}))


@pytest.mark.usefixtures("six")
@pytest.mark.parametrize(("text", "found"), [("7", {7}), ("1-3", {1, 2, 3}), ("0,2-3,7", {0, 2, 3, 7})])
def test_numbers_and_ranges(text: str, found: set[int]) -> None:
    assert cpus.some_of_them("--engine-cpus", text) == found


@pytest.mark.usefixtures("six")
@pytest.mark.parametrize("text", ["", "x", "1-", "-1", "4", "3-6", "3-1", "1,1", "0-99999999999", "0-3,6-7"])
def test_others_are_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(FieldError, match="allowed: numbers and ranges of 0,1,2,3,6,7, not all of them; .* 7$"):
        cpus.some_of_them("--engine-cpus", text)


def test_a_single_cpu_cannot_be_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "available", lambda: frozenset({0}))
    with pytest.raises(FieldError, match="fix: leave it out: there is one CPU only"):
        cpus.some_of_them("--engine-cpus", "0")
