"""What a field of a request can be: passed on, refused unless it asks for nothing, or without an effect here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from triton_repo.tensors import ALL_INPUTS

MOST_INT32 = 2**31 - 1
# Up to here a JSON number that a client wrote as 32.0 is the integer that it meant.
_EXACT = 2**53
# OpenAI's own, of metadata.
_MOST_PAIRS, _MOST_PAIR_NAME, _MOST_PAIR_TEXT = 16, 64, 512
PAIRS = f"at most {_MOST_PAIRS} pairs of texts, of {_MOST_PAIR_NAME} and {_MOST_PAIR_TEXT} characters at most"


def _whole(value: Any) -> Any:
    # JSON has one kind of number: 32.0 is 32.
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT else value


def _all_whole(value: Any) -> Any:
    # One call for the list: one for each of half a million tokens would hold up all other requests for a second.
    return [_whole(each) for each in value] if isinstance(value, list) and float in set(map(type, value)) else value


def _is_text(value: str) -> bool:
    return value == value.encode(errors="ignore").decode()


def _encodable(value: str) -> str:
    # Half of a surrogate pair, which JSON can spell, is no character: it has no UTF-8.
    if not _is_text(value):
        raise PydanticCustomError("string_unicode", "no character")
    return value


def _all_encodable(value: Any) -> Any:
    if not _is_text(json.dumps(value, ensure_ascii=False)):
        raise PydanticCustomError("string_unicode", "no character")
    return value


def _few_pairs(value: Any) -> Any:
    # All of it here, before pydantic looks: an error for each of half a million would hold up all other requests.
    if value is None or (isinstance(value, dict) and len(value) <= _MOST_PAIRS and all(map(_is_pair, value.items()))):
        return value
    raise PydanticCustomError("bound", PAIRS)


def _is_pair(pair: tuple[str, Any]) -> bool:
    name, text = pair
    return (
        isinstance(text, str)
        and len(name) <= _MOST_PAIR_NAME
        and len(text) <= _MOST_PAIR_TEXT
        and _is_text(name)
        and _is_text(text)
    )


Text = Annotated[str, AfterValidator(_encodable)]
Object = Annotated[dict[str, Any], AfterValidator(_all_encodable)]  # any JSON
Whole = BeforeValidator(_whole)
Int32 = Annotated[int, Whole, Field(ge=-MOST_INT32 - 1, le=MOST_INT32)]
Float32 = Annotated[float, Field(ge=-3.4e38, le=3.4e38, allow_inf_nan=False)]
Tokens = Annotated[list[Annotated[int, Field(ge=0, le=MOST_INT32)]], Field(fail_fast=True), BeforeValidator(_all_whole)]
Pairs = BeforeValidator(_few_pairs)
MOST_MESSAGES = 2**14
# Of all messages, or questions, of a request together.
_MOST_PARTS = 2**13
PARTS = f"at most {_MOST_PARTS} parts and tool calls in all"
# Fields of a message or a question that are lists of these.
_PARTED = ("content", "output", "instructions", "tool_calls")
_MOST_FIELDS = 256


def _few_parts(value: Any) -> Any:
    # All of it here, before pydantic looks: to check 60,000 would hold up all other requests for half a second.
    if isinstance(value, list) and sum(map(_parts, value)) > _MOST_PARTS:
        raise PydanticCustomError("bound", PARTS)
    return value


def _parts(message: Any) -> int:
    lists = (message.get(name) for name in _PARTED) if isinstance(message, dict) else ()
    return sum(len(each) for each in lists if isinstance(each, list))


Parts = BeforeValidator(_few_parts)


def passed_on(name: str, **limits: Any) -> Any:
    """A field that is passed on as the served model's input of this name."""
    return Field(default=None, description=ALL_INPUTS[name].about, **limits)


def only(*neutral: Any, instead: str) -> Any:
    """A field that is accepted as long as it asks for nothing: None or one of ``neutral``."""
    return Field(default=None, description=f"Unsupported: {instead}", json_schema_extra={"enum": [None, *neutral]})


def ignored(*neutral: Any, why: str) -> Any:
    """A field without an effect on the answer; unless it is None or one of ``neutral``, the answer says so."""
    return Field(default=None, description=f"Ignored: {why}", json_schema_extra={"x-neutral": [None, *neutral]})


class Strict(BaseModel):
    """No conversions, no unknown fields; a field made by :func:`only` takes its neutral values."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        # An error for each field that is not known would take longer than any request.
        if isinstance(value, dict) and len(value) > _MOST_FIELDS:
            name = next(name for name in value if name not in cls.model_fields)
            raise wrong(name, "there is no such field")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _asks_for_nothing(cls, value: Any, info: Any) -> Any:
        field = cls.model_fields[info.field_name]
        if not (field.description or "").startswith("Unsupported") or _among(value, field, "enum"):
            return value
        instead = (field.description or "").removeprefix("Unsupported: ")
        raise PydanticCustomError("unsupported", "not supported here: {instead}", {"instead": instead})

    def without_effect(self) -> list[str]:
        """Names of the fields that the request fills and that change nothing, without numbers of a list."""
        found: dict[str, None] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if (field.description or "").startswith("Ignored"):
                if not _among(value, field, "x-neutral"):
                    found[name] = None
            else:
                found |= {f"{name}.{inner}": None for each in _models(value) for inner in each.without_effect()}
        return list(found)


def _models(value: Any) -> Iterator[Strict]:
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, Strict):
            yield each


def _among(value: Any, field: FieldInfo, key: str) -> bool:
    extra: Any = field.json_schema_extra
    if not isinstance(extra, dict) or key not in extra:
        return False
    # True equals 1 in Python, and not in JSON.
    return any(value == n and isinstance(value, bool) == isinstance(n, bool) for n in extra[key])


def wrong(field: str, why: str) -> PydanticCustomError:
    """What a validator raises for several fields that do not fit together; ``field`` is the one to change."""
    return PydanticCustomError("wrong", "{why}", {"field": field, "why": why})


def by_type(*types: str, otherwise: str) -> Discriminator:
    """Which of several shapes an object has, tagged ``~type``: by its ``type``.

    Args:
        types: that there are.
        otherwise: of these the shape of what is no object, or has no type.
    """

    def tag(value: Any) -> str | None:
        found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        if found is None:
            return f"~{otherwise}"
        return f"~{found}" if isinstance(found, str) and found in types else None

    expected = ", ".join(map(repr, types[:-1])) + f" or {types[-1]!r}"
    # what is allowed is the message: a context would be a dictionary, which unions cannot have in them
    return Discriminator(tag, custom_error_type="type", custom_error_message=expected)
