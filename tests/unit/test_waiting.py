"""What takes long says how far it is."""

from __future__ import annotations

import io
import sys

import pytest

from nemo_diffgemma import waiting as module
from nemo_diffgemma.waiting import waiting


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_what_is_quick_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("reading", 100) as tick:
        clock[0] = 1.9
        tick(50)
    assert capsys.readouterr() == ("", "")


def test_elsewhere_than_on_a_terminal_there_is_a_line_now_and_then(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with waiting("reading", 200) as tick:
        for clock[0] in (2.5, 3.0, 17.0, 18.0, 40.0):
            tick(int(clock[0]) * 2)
    assert capsys.readouterr().err == "reading: 2 %\nreading: 18 %\nreading: 40 %\n"


def test_a_process_that_another_speaks_for_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("reading", 100, shown=False) as tick:
        clock[0] = 30.0
        tick(50)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with waiting("reading", 100) as tick:
        clock[0] = 3.0
        tick(50)
    assert "reading" in screen.getvalue()
    assert "50%" in screen.getvalue()
