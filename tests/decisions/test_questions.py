"""What is a question, and what is none."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_diffgemma.decisions import Option, Question, parse_questions
from nemo_diffgemma.errors import FieldError


def choice(*values: Any) -> dict[str, Any]:
    return {"type": "choice", "instructions": "Which?", "choices": [{"value": value} for value in values]}


def test_every_kind_is_read() -> None:
    found = parse_questions(
        [
            {"type": "predicate", "instructions": "It is late.", "name": "late"},
            {**choice("true", True, False), "name": None},
            {
                "type": "score",
                "instructions": "How?",
                "levels": [{"label": "low", "description": "no"}, {"label": "hi"}],
            },
        ]
    )
    assert found == (
        Question("predicate", "It is late.", name="late"),
        Question("choice", "Which?", (Option("true"), Option(True), Option(False))),
        Question("score", "How?", (Option("low", "no"), Option("hi"))),
    )
    assert found[1].options[1].value is True


@pytest.mark.parametrize(
    ("question", "field"),
    [
        (7, r"questions\[0\].type"),
        ({"type": "noul", "instructions": "a"}, r"questions\[0\].type"),
        ({"type": ["choice"], "instructions": "a"}, r"questions\[0\].type"),
        ({"type": "predicate"}, r"questions\[0\].instructions"),
        ({"type": "predicate", "instructions": " "}, r"questions\[0\].instructions"),
        ({"type": "predicate", "instructions": "\ud800"}, r"questions\[0\].instructions"),
        ({"type": "predicate", "instructions": "a", "choices": []}, r"questions\[0\].choices"),
        ({"type": "predicate", "instructions": "a", "name": 3}, r"questions\[0\].name"),
        (choice("a"), r"questions\[0\].choices"),
        (choice(*map(str, range(256))), r"questions\[0\].choices"),
        (choice("a", "b", "a"), r"questions\[0\].choices\[2\].value"),
        (choice(True, "true", True), r"questions\[0\].choices\[2\].value"),
        (choice("a", 1), r"questions\[0\].choices\[1\].value"),
        (choice("a", None), r"questions\[0\].choices\[1\].value"),
        ({**choice("a", "b"), "levels": []}, r"questions\[0\].levels"),
        ({"type": "score", "instructions": "a", "levels": [{"label": "a"}, {"label": True}]}, r"questions\[0\].levels"),
        ({"type": "score", "instructions": "a", "levels": [{"label": "a"}, {"value": "b"}]}, r"questions\[0\].levels"),
        ({"type": "score", "instructions": "a", "levels": {"a": 1, "b": 2}}, r"questions\[0\].levels"),
    ],
)
def test_what_is_no_question_is_refused_by_path(question: Any, field: str) -> None:
    with pytest.raises(FieldError, match=f"^{field}"):
        parse_questions([question])


def test_how_many() -> None:
    one = {"type": "predicate", "instructions": "a", "name": "x"}
    assert len(parse_questions([{**one, "name": str(i)} for i in range(400)])) == 400
    for wrong in ([], [{**one, "name": None}] * 401, "a", {"a": one}, None):
        with pytest.raises(FieldError, match="^questions"):
            parse_questions(wrong)
