"""What a variable of make holds reaches the command as one argument, whatever characters it has."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
VALUES = ["a b", "a=b,c#d", 'it\'s "x" $y `z` $(w) #1', "größe/[1] & ; |", "back\\slash", "-5 km in m"]


def command(target: str, environment: dict[str, str], *variables: str) -> list[str]:
    """The words of the one command that make would run."""
    make = ["make", "--dry-run", "--no-print-directory", "--assume-old=.venv/.installed", target, *variables]
    found = subprocess.run(make, cwd=PROJECT, capture_output=True, text=True, check=True, env=environment).stdout
    return shlex.split(found)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("given", ["on the command line", "in the environment"])
def test_values_are_one_argument_each(value: str, given: str) -> None:
    names = ("CHECKPOINT", "ENGINE", "CALIBRATION", "PROMPT")
    plain = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    if given == "on the command line":
        variables, environment = [f"{name}={value}" for name in names], plain
    else:
        variables, environment = [], plain | dict.fromkeys(names, value)
    assert command("train", environment, *variables) == [".venv/bin/diffgemma-train", f"output={value}"]
    engine = command("engine", environment, *variables)
    assert engine[:3] == [".venv/bin/diffgemma-engine", "build", "gpu=cpu"]
    assert engine[3:] == [f"checkpoint={value}", f"out={value}", f"calibration={value}"]
    assert command("serve", environment, *variables)[1:3] == ["--engine", value]
    assert command("chat", environment, *variables)[-2:] == ["--", value]


def test_what_is_not_given_has_its_default() -> None:
    plain = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    assert command("engine", plain)[3:] == ["checkpoint=build/demo/checkpoint", "out=build/demo/engine"]
