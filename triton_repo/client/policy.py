"""A policy: questions in a file that is versioned, checked and tested like code.

::

    policy: orders              # its name
    version: 3                  # goes up with every change of a question
    order: permute              # optional, as are joint, samples and seed
    questions:
      - {name: large, type: predicate, instructions: The order is large.}
    tests:                      # optional
      - input: Leo takes 40 pens.
        answers: {large: true}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nemo_diffgemma.decisions import Question, parse_questions
from nemo_diffgemma.errors import FieldError, require, require_integer

_KEYS = ("policy", "version", "questions", "order", "joint", "samples", "seed", "tests")
_OPTIONS = ("order", "joint", "samples", "seed")


@dataclass(frozen=True)
class Expectation:
    """A text, and what a policy is to answer about it, by the question's name."""

    text: str
    answers: Mapping[str, str | bool]


@dataclass(frozen=True)
class Policy:
    """Questions, and how they are asked.

    Args:
        name: what the file calls it.
        version: likewise.
        questions: as the server takes them; each has a name of its own.
        options: of :meth:`triton_repo.client.client.Client.decide`.
        tests: what it is to answer.
    """

    name: str
    version: int
    questions: list[dict[str, Any]]
    options: dict[str, Any]
    tests: list[Expectation]


def read_policy(path: Path) -> Policy:
    """Read a policy's file, YAML or JSON.

    Raises:
        FieldError: for what is no policy, by its place in the file.
    """
    found = _loaded(path)
    shape = "an object with policy, version and questions"
    require(isinstance(found, dict), field=str(path), value=found, allowed=shape, fix="see docs/decisions.md")
    strange = next((key for key in found if key not in _KEYS), None)
    require(strange is None, f"{path}: {strange}", "a key", f"no others than {', '.join(_KEYS)}", "leave it out")
    name, version = found.get("policy"), found.get("version")
    require(isinstance(name, str) and name != "", f"{path}: policy", name, "a name", "write policy: my-questions")
    require_integer(f"{path}: version", version, 1)
    questions = parse_questions(found.get("questions"), f"{path}: questions")
    by_name: dict[str, Question] = {}
    for i, question in enumerate(questions):
        where = f"{path}: questions[{i}].name"
        good = question.name is not None and question.name not in by_name
        require(good, where, question.name, "a name, which no other question has", "name it")
        by_name[str(question.name)] = question
    options = {key: found[key] for key in _OPTIONS if key in found}
    tests = found.get("tests", [])
    require(isinstance(tests, list), f"{path}: tests", tests, "a list of {input, answers}", "leave it out")
    checked = [_test(test, by_name, f"{path}: tests[{i}]") for i, test in enumerate(tests)]
    return Policy(str(name), int(str(version)), list(found["questions"]), options, checked)


def differences(test: Expectation, answers: list[dict[str, Any]]) -> list[str]:
    """What the server answered otherwise than a test says, a line each."""
    given = {answer["name"]: answer for answer in answers}
    found = []
    for name, wanted in test.answers.items():
        said = verdict(given[name])
        if said != wanted or isinstance(said, bool) != isinstance(wanted, bool):
            found.append(f"{name}: {said!r}, not {wanted!r}, about {test.text[:60]!r}")
    return found


def verdict(answer: Mapping[str, Any]) -> str | bool:
    """What an answer comes to: the likelier truth, the choice, the likeliest level's label."""
    if answer["type"] == "predicate":
        return bool(answer["probability"] >= 0.5)
    best = max(answer["probabilities"], key=lambda p: p["probability"])
    found: str | bool = best["value"] if answer["type"] == "choice" else best["label"]
    return found


def _test(test: Any, questions: Mapping[str, Question], field: str) -> Expectation:
    good = isinstance(test, dict) and set(test) == {"input", "answers"} and isinstance(test["input"], str)
    good = good and isinstance(test["answers"], dict) and bool(test["answers"])
    require(good, field, test, "an object with input, a text, and answers by name", "correct it")
    for name, wanted in test["answers"].items():
        question = questions.get(name)
        require(question is not None, f"{field}.answers", name, f"names of questions: {', '.join(questions)}", "fix it")
        assert question is not None
        values = [True, False] if question.kind == "predicate" else [option.value for option in question.options]
        good = any(wanted == value and isinstance(wanted, bool) == isinstance(value, bool) for value in values)
        require(good, f"{field}.answers.{name}", wanted, ", ".join(map(repr, values)), "write one of these")
    return Expectation(test["input"], test["answers"])


def _loaded(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FieldError(str(path), str(error), "a file of UTF-8 text", "correct the path") from None
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FieldError(str(path), str(error), "JSON", "correct it") from None
    there = find_spec("yaml") is not None
    require(there, str(path), "YAML", "JSON: YAML needs pyyaml", "pip install pyyaml, or write a .json")
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise FieldError(str(path), " ".join(str(error).split()), "YAML", "correct it") from None
