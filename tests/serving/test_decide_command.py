"""``diffgemma decide``: policies from files, checked, asked and tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_diffgemma.errors import FieldError
from triton_repo.cli import main
from triton_repo.client.policy import Expectation, differences, read_policy, verdict
from triton_repo.launcher.server import Server

POLICY: dict[str, Any] = {
    "policy": "orders",
    "version": 3,
    "samples": 2,
    "questions": [
        {"name": "red", "type": "predicate", "instructions": "It is red."},
        {"name": "what", "type": "choice", "instructions": "What?", "choices": [{"value": "lamp"}, {"value": True}]},
        {"name": "much", "type": "score", "instructions": "How?", "levels": [{"label": "low"}, {"label": "high"}]},
    ],
    "tests": [{"input": "A red lamp.", "answers": {"red": True, "what": "lamp", "much": "low"}}],
}


def written(folder: Path, name: str = "policy.yaml", **changes: Any) -> Path:
    path = folder / name
    whole = POLICY | changes
    path.write_text(json.dumps(whole) if name.endswith(".json") else yaml.safe_dump(whole))
    return path


@pytest.mark.parametrize("name", ["policy.yaml", "policy.json"])
def test_a_policy_is_read(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = read_policy(written(tmp_path, name))
    assert (found.name, found.version, found.options) == ("orders", 3, {"samples": 2})
    assert found.questions == POLICY["questions"]
    assert found.tests == [Expectation("A red lamp.", {"red": True, "what": "lamp", "much": "low"})]
    assert main(["decide", "--questions", str(tmp_path / name), "--lint"]) == 0
    assert capsys.readouterr().out == "orders version 3: 3 questions, 1 tests\n"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"policy": ""}, "policy"),
        ({"version": 0}, "version"),
        ({"version": True}, "version"),
        ({"version": "3"}, "version"),
        ({"sampels": 3}, "sampels"),
        ({"questions": []}, "questions"),
        ({"questions": [{**POLICY["questions"][0], "name": None}]}, r"questions\[0\].name"),
        ({"questions": [POLICY["questions"][0]] * 2}, r"questions\[1\].name"),
        ({"questions": [{**POLICY["questions"][0], "kind": "x"}]}, r"questions\[0\].kind"),
        ({"tests": {"input": "a"}}, "tests"),
        ({"tests": [{"input": "a"}]}, r"tests\[0\]"),
        ({"tests": [{"input": "a", "answers": {"blue": True}}]}, r"tests\[0\].answers"),
        ({"tests": [{"input": "a", "answers": {"red": "yes"}}]}, r"tests\[0\].answers.red"),
        ({"tests": [{"input": "a", "answers": {"what": "true"}}]}, r"tests\[0\].answers.what"),
        ({"tests": [{"input": "a", "answers": {"much": 0}}]}, r"tests\[0\].answers.much"),
    ],
)
def test_what_is_wrong_in_a_policy_is_named(
    tmp_path: Path, changes: dict[str, Any], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(FieldError, match=f"policy.yaml: {field}: "):
        read_policy(path)
    assert main(["decide", "--questions", str(path), "--lint"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("text", ["policy: [", "", "- a", "\xff", "&a [*a]"])
def test_files_that_are_no_policy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(text.encode("latin-1"))
    for each in (path, tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(FieldError):
            read_policy(each)


def test_what_answers_come_to_and_differ_in() -> None:
    answers: list[dict[str, Any]] = [
        {"type": "predicate", "name": "red", "probability": 0.4},
        {
            "type": "choice",
            "name": "what",
            "probabilities": [{"value": "true", "probability": 0.7}, {"value": True, "probability": 0.3}],
        },
        {
            "type": "score",
            "name": "much",
            "probabilities": [
                {"value": 0, "label": "low", "probability": 0.6},
                {"value": 1, "label": "high", "probability": 0.4},
            ],
        },
    ]
    assert [verdict(a) for a in answers] == [False, "true", "low"]
    test = Expectation("A text.", {"red": True, "what": True, "much": "low"})
    assert differences(test, answers) == [
        "red: False, not True, about 'A text.'",
        "what: 'true', not True, about 'A text.'",
    ]


@pytest.mark.server
def test_a_server_is_asked(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path)
    asked = ["decide", "--questions", str(path), "--url", server.grpc_url]
    assert main([*asked, "A red lamp.", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["policy"], found["version"]) == ("orders", 3)
    assert [a["name"] for a in found["answers"]] == ["red", "what", "much"]
    assert main([*asked, "A red lamp."]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 4
    assert table[1].split()[:2] == ["red", json.dumps(verdict(found["answers"][0]))]
    right = {a["name"]: verdict(a) for a in found["answers"]}
    assert (
        main(
            [
                *asked[:2],
                str(written(tmp_path, tests=[{"input": "A red lamp.", "answers": right}])),
                *asked[3:],
                "--test",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == "orders version 3: 1 texts, 0 wrong answers\n"
    wrong = {"red": not right["red"]}
    written(tmp_path, tests=[{"input": "A red lamp.", "answers": wrong}])
    assert main([*asked, "--test"]) == 1
    assert capsys.readouterr().out.startswith(f"red: {right['red']}, not {wrong['red']}, about 'A red lamp.'\n")
    assert main([*asked[:-1], "127.0.0.1:1", "a"]) in (1, 2)
    assert capsys.readouterr().err.startswith("error: ")
