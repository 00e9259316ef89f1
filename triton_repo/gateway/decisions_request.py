"""The requests of OpenAI's decisions API, and of ``/v1/systemone``: questions about a text or a conversation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from nemo_diffgemma.decisions import MOST_OPTIONS, MOST_QUESTIONS
from triton_repo.gateway.fields import (
    MOST_MESSAGES,
    Float32,
    Int32,
    Object,
    Parts,
    Strict,
    Text,
    Whole,
    by_type,
    ignored,
    only,
    passed_on,
    wrong,
)
from triton_repo.gateway.messages import text_or_list

_CACHE = "prompts are cached by what they begin with"
_HISTORY = "of an item only what was said is read"
_IMAGES = "this model reads text alone"
# OpenAI's own, of a part of JSON.
_MOST_LEVELS, _MOST_VALUES, _MOST_BYTES = 32, 10_000, 256 * 2**10


_FIELDS = {
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "input_json": "data",
    "input_image": "image_url",
}


def _shape(value: Any) -> str:
    """The tag of a value that may be an object, a list or a text."""
    return "~object" if isinstance(value, dict) else text_or_list(value)


class Part(Strict):
    """A part of a text."""

    type: Literal["input_text", "output_text", "refusal", "input_json", "input_image"] = Field(
        description=f"of images: unsupported: {_IMAGES}"
    )
    text: Text | None = None
    refusal: Text | None = None
    data: Annotated[
        Annotated[Object, Tag("~object")]
        | Annotated[list[Object], Field(fail_fast=True), Tag("~list")]
        | Annotated[None, Tag("~null")],
        Discriminator(_shape),
    ] = Field(default=None, description="JSON, which is read as text")
    image_url: Any = None
    detail: Any = None
    prompt_cache_breakpoint: Any = ignored(why=_CACHE)

    @model_validator(mode="after")
    def _of_its_type(self) -> Self:
        if self.type == "input_image":
            raise wrong("type", f"not supported here: {_IMAGES}")
        wanted = _FIELDS[self.type]
        if getattr(self, wanted) is None:
            raise wrong(wanted, "this field is required")
        for name in (*_FIELDS.values(), "detail"):
            if name != wanted and getattr(self, name) is not None:
                raise wrong(name, "there is no such field")
        if self.data is not None and not _is_small(self.data):
            raise wrong("data", f"at most {_MOST_LEVELS} levels, {_MOST_VALUES} values and {_MOST_BYTES} bytes")
        return self

    def plain(self) -> str:
        """As the model reads it."""
        return self.text or self.refusal or ("" if self.data is None else _dumped(self.data))


Content = Annotated[
    Annotated[Text, Tag("~text")] | Annotated[list[Part], Field(fail_fast=True), Tag("~list")],
    Discriminator(text_or_list),
]
_PARTS = {
    "user": ("input_text", "input_json"),
    "developer": ("input_text",),
    "system": ("input_text",),
    "assistant": ("output_text", "refusal"),
}


class DecisionMessage(Strict):
    """A message of ``input``."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    phase: Any = ignored(why=_HISTORY)
    id: Any = ignored(why=_HISTORY)
    status: Any = ignored("completed", why=_HISTORY)

    @model_validator(mode="after")
    def _parts_of_the_role(self) -> Self:
        for i, part in enumerate(self.content if isinstance(self.content, list) else []):
            if part.type not in _PARTS[self.role]:
                raise wrong(f"content[{i}].type", f"of this role: {' or '.join(_PARTS[self.role])}")
        return self


class Call(Strict):
    """A tool that the assistant called."""

    type: Literal["function_call", "custom_tool_call"]
    call_id: Text
    name: Text
    namespace: Text | None = None
    arguments: Text | None = Field(default=None, description="of a function")
    input: Text | None = Field(default=None, description="of a custom tool")
    id: Any = ignored(why=_HISTORY)
    status: Any = ignored("completed", why=_HISTORY)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        name, other = ("arguments", "input") if self.type == "function_call" else ("input", "arguments")
        if getattr(self, name) is None:
            raise wrong(name, "this field is required")
        if getattr(self, other) is not None:
            raise wrong(other, "there is no such field")
        return self

    @property
    def full_name(self) -> str:
        """With the namespace."""
        return f"{self.namespace}.{self.name}" if self.namespace else self.name


class CallOutput(Strict):
    """What a tool gave back."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Text
    output: Content
    id: Any = ignored(why=_HISTORY)
    status: Any = ignored("completed", why=_HISTORY)


Item = Annotated[
    Annotated[DecisionMessage, Tag("~message")]
    | Annotated[Call, Tag("~function_call")]
    | Annotated[Call, Tag("~custom_tool_call")]
    | Annotated[CallOutput, Tag("~function_call_output")]
    | Annotated[CallOutput, Tag("~custom_tool_call_output")],
    by_type(
        "message",
        "function_call",
        "custom_tool_call",
        "function_call_output",
        "custom_tool_call_output",
        otherwise="message",
    ),
]


class Choice(Strict):
    """An option of a choice; the text "true" is another value than the truth."""

    value: Annotated[
        Annotated[bool, Tag("~truth")] | Annotated[Text, Tag("~text")],
        Discriminator(lambda value: "~truth" if isinstance(value, bool) else "~text"),
    ]
    description: Text | None = None


class Level(Strict):
    """A level of a score."""

    label: Text
    description: Text | None = None


class Question(Strict):
    """One question."""

    type: Literal["predicate", "choice", "score"] = Field(
        description="how likely is it so; which of the choices; how much, the lowest of the levels first"
    )
    instructions: Content
    name: Text | None = None
    choices: Annotated[list[Choice], Field(fail_fast=True, min_length=2, max_length=MOST_OPTIONS)] | None = None
    levels: Annotated[list[Level], Field(fail_fast=True, min_length=2, max_length=MOST_OPTIONS)] | None = None

    @model_validator(mode="after")
    def _of_its_type(self) -> Self:
        for name, kind in (("choices", "choice"), ("levels", "score")):
            given = getattr(self, name) is not None
            if given != (self.type == kind):
                raise wrong(name, "there is no such field" if given else "this field is required")
        for i, part in enumerate(self.instructions if isinstance(self.instructions, list) else []):
            if part.type not in ("input_text", "input_json"):
                raise wrong(f"instructions[{i}].type", "of a question: input_text or input_json")
        return self

    def plain(self) -> dict[str, Any]:
        """As the served model takes it."""
        return self.model_dump(exclude_none=True) | {"instructions": _joined(self.instructions)}


class Common(Strict):
    """What both endpoints take beside the questions; none of it is OpenAI's."""

    seed: Annotated[int, Whole, Field(ge=0, le=2**64 - 1)] | None = passed_on("seed")
    samples: Int32 | None = passed_on("samples", ge=1)
    order: Literal["given", "permute"] | None = passed_on("order")
    joint: bool | None = passed_on("joint")
    cache_salt: Text | None = passed_on("cache_salt", max_length=128)
    priority: Int32 | None = passed_on("priority")
    deadline: Float32 | None = passed_on("deadline")

    def options(self) -> dict[str, Any]:
        """The client's arguments."""
        return {name: getattr(self, name) for name in Common.model_fields}


class DecisionsRequest(Common):
    """Body of ``POST /v1/decisions``."""

    model: Text = Field(min_length=1, description="as /v1/models names it")
    input: Annotated[
        Annotated[Text, Tag("~text")]
        | Annotated[list[Item], Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES), Parts, Tag("~list")],
        Discriminator(text_or_list),
    ] = Field(description="what the questions are about")
    questions: Annotated[
        list[Question],
        Field(fail_fast=True, min_length=1, max_length=MOST_QUESTIONS),
        Parts,
    ]
    prompt_cache_key: Text | None = Field(default=None, description="another name of cache_salt")
    prompt_cache_options: Any = ignored({}, why=_CACHE)
    safety_identifier: Any = ignored(why="nobody's use is watched")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if None not in (self.cache_salt, self.prompt_cache_key) and self.cache_salt != self.prompt_cache_key:
            raise wrong("prompt_cache_key", "not the same as cache_salt")
        calls: dict[str, str] = {}
        for i, item in enumerate(self.input if isinstance(self.input, list) else []):
            if isinstance(item, Call):
                calls[item.call_id] = item.type
            elif isinstance(item, CallOutput) and calls.get(item.call_id) != item.type.removesuffix("_output"):
                raise wrong(f"input[{i}].call_id", "no call before it has this id")
        return self

    def options(self) -> dict[str, Any]:
        salt = self.cache_salt if self.prompt_cache_key is None else self.prompt_cache_key
        return super().options() | {"cache_salt": salt}

    def messages(self) -> list[dict[str, str]]:
        """The conversation as the served model takes it; what one role says in a row is one message."""
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}]
        found: list[dict[str, str]] = []
        for role, text in self._said(self.input):
            if found and found[-1]["role"] == role:
                found[-1]["content"] += f"\n\n{text}"
            else:
                found.append({"role": role, "content": text})
        return found

    def _said(self, items: list[DecisionMessage | Call | CallOutput]) -> Iterator[tuple[str, str]]:
        names: dict[str, str] = {}
        for item in items:
            if isinstance(item, Call):
                names[item.call_id] = item.full_name
                yield "assistant", f"{item.full_name}({item.input if item.arguments is None else item.arguments})"
            elif isinstance(item, CallOutput):
                yield "user", f"{names[item.call_id]} gave: {_joined(item.output)}"
            else:
                yield "system" if item.role == "developer" else item.role, _joined(item.content)


class SystemOneQuestion(Strict):
    """A question of ``/v1/systemone``."""

    type: Literal["noul", "choice", "score"] = Field(description="noul: yes or no")
    instructions: Text
    criteria: Annotated[
        Annotated[dict[str, Text | None], Field(max_length=MOST_OPTIONS), Tag("~object")]
        | Annotated[list[Text], Field(fail_fast=True, max_length=MOST_OPTIONS), Tag("~list")]
        | Annotated[Text, Tag("~text")]
        | Annotated[None, Tag("~null")],
        Discriminator(_shape),
    ] = Field(
        default=None, description="of choice and score the options, perhaps with what they mean; else what decides"
    )

    @model_validator(mode="after")
    def _has_options(self) -> Self:
        criteria = self.criteria
        if self.type != "noul" and (isinstance(criteria, str) or criteria is None):
            raise wrong("criteria", "of choice and score a list of options, or an object from option to meaning")
        if self.type != "noul" and criteria is not None and not 2 <= len(criteria) <= MOST_OPTIONS:
            raise wrong("criteria", f"{len(criteria)} options: of choice and score 2 to {MOST_OPTIONS}")
        return self

    def plain(self) -> dict[str, Any]:
        """As the served model takes it."""
        criteria = self.criteria
        if self.type == "noul":
            said = criteria if isinstance(criteria, str) else "" if criteria is None else _dumped(criteria)
            return {"type": "predicate", "instructions": f"{self.instructions}\n{said}".strip()}
        assert criteria is not None
        assert not isinstance(criteria, str)
        pairs = criteria.items() if isinstance(criteria, dict) else ((name, None) for name in criteria)
        key, inner = ("choices", "value") if self.type == "choice" else ("levels", "label")
        options = [{inner: name} | ({} if about is None else {"description": about}) for name, about in pairs]
        return {"type": self.type, "instructions": self.instructions, key: options}


class SystemOneRequest(Common):
    """Body of ``POST /v1/systemone``."""

    model: Text | None = Field(default=None, min_length=1, description="as /v1/models names it")
    state: Any = Field(description="a text, or JSON, that the questions are about")
    questions: Annotated[dict[Text, SystemOneQuestion], Field(min_length=1, max_length=MOST_QUESTIONS)]
    images: Any = only([], instead=_IMAGES)

    def messages(self) -> list[dict[str, str]]:
        """The conversation as the served model takes it."""
        return [{"role": "user", "content": self.state if isinstance(self.state, str) else _dumped(self.state)}]


def _joined(content: str | list[Any]) -> str:
    return content if isinstance(content, str) else "\n".join(part.plain() for part in content)


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _is_small(data: Any) -> bool:
    values, level = 0, [data]
    for _ in range(_MOST_LEVELS + 1):
        values += len(level)
        level = [inner for each in level for inner in _inner(each)]
    return not level and values <= _MOST_VALUES and len(_dumped(data).encode(errors="replace")) <= _MOST_BYTES


def _inner(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
