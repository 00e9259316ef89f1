"""Typed questions about a text: is it so, which of these, how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nemo_diffgemma.errors import require

Kind = Literal["predicate", "choice", "score"]
KINDS: tuple[Kind, ...] = ("predicate", "choice", "score")
MOST_QUESTIONS, MOST_OPTIONS = 400, 255
_KEYS = {
    "predicate": ("type", "name", "instructions"),
    "choice": ("type", "name", "instructions", "choices"),
    "score": ("type", "name", "instructions", "levels"),
}


@dataclass(frozen=True)
class Option:
    """What may be answered.

    Args:
        value: of a choice, where the text "true" is another value than the truth; of a score, the level's label.
        description: what it means.
    """

    value: str | bool
    description: str = ""


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        kind: predicate: how likely is what the instructions say; choice: one of the options; score: the options are
            levels, the lowest first.
        instructions: what is asked.
        options: of a choice or a score.
        name: comes back with the answer.
    """

    kind: Kind
    instructions: str
    options: tuple[Option, ...] = ()
    name: str | None = None


def parse_questions(value: object, field: str = "questions") -> tuple[Question, ...]:
    """Questions of their JSON: a list of ``{"type", "instructions", "name"?}``, with ``choices`` of
    ``{"value", "description"?}`` for a choice and ``levels`` of ``{"label", "description"?}`` for a score.

    Raises:
        FieldError: for what is no question.
    """
    good = isinstance(value, list | tuple) and 1 <= len(value) <= MOST_QUESTIONS
    require(
        good,
        field=field,
        value=value if not isinstance(value, list | tuple) else f"{len(value)} questions",
        allowed=f"a list of 1 to {MOST_QUESTIONS} questions",
        fix='send [{"type": "predicate", "instructions": "The order is urgent."}]',
    )
    assert isinstance(value, list | tuple)
    return tuple(_question(each, f"{field}[{i}]") for i, each in enumerate(value))


def _question(value: object, field: str) -> Question:
    kind = value.get("type") if isinstance(value, Mapping) else None
    allowed = f"an object with type {', '.join(KINDS[:-1])} or {KINDS[-1]}"
    shown = kind if isinstance(value, Mapping) else value
    require(isinstance(kind, str) and kind in KINDS, f"{field}.type", shown, allowed, 'send {"type": "predicate", ...}')
    assert isinstance(value, Mapping)
    assert kind == "predicate" or kind == "choice" or kind == "score"
    _known(value, _KEYS[kind], field)
    instructions = _text(value.get("instructions"), f"{field}.instructions")
    name = value.get("name")
    if name is not None:
        name = _text(name, f"{field}.name")
    if kind == "predicate":
        return Question(kind, instructions, name=name)
    key, inner = ("choices", "value") if kind == "choice" else ("levels", "label")
    return Question(kind, instructions, _options(value.get(key), f"{field}.{key}", inner), name)


def _options(value: object, field: str, key: str) -> tuple[Option, ...]:
    good = isinstance(value, list | tuple) and 2 <= len(value) <= MOST_OPTIONS
    require(
        good,
        field=field,
        value=f"{len(value)} of them" if isinstance(value, list | tuple) else value,
        allowed=f"a list of 2 to {MOST_OPTIONS}",
        fix=f'send [{{"{key}": "low"}}, {{"{key}": "high"}}]',
    )
    assert isinstance(value, Sequence)
    options: list[Option] = []
    for i, each in enumerate(value):
        where = f"{field}[{i}]"
        require(isinstance(each, Mapping), where, each, f"an object with {key}", f'send {{"{key}": "low"}}')
        _known(each, (key, "description"), where)
        found = each.get(key)
        if not (key == "value" and isinstance(found, bool)):
            found = _text(found, f"{where}.{key}")
        description = each.get("description")
        options.append(Option(found, "" if description is None else _text(description, f"{where}.description", True)))
        # True equals 1 in Python, but no text
        same = any(o.value == found for o in options[:-1])
        require(not same, f"{where}.{key}", found, "each once; the text 'true' is another value than true", "remove it")
    return tuple(options)


def _known(value: Mapping[Any, Any], keys: Sequence[str], field: str) -> None:
    strange = next((key for key in value if key not in keys), None)
    shown = None if strange is None else value[strange]
    require(strange is None, f"{field}.{strange}", shown, f"of all keys {', '.join(keys)}", "leave it out")


def _text(value: object, field: str, empty: bool = False) -> str:
    good = isinstance(value, str) and (empty or value.strip() != "") and value == value.encode(errors="ignore").decode()
    require(good, field, value, "a text" if empty else "a text that is not empty", "send one")
    return str(value)
