"""What form an answer is to have: ``response_format`` and its relatives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from triton_repo.gateway.fields import Object, Strict, Text, by_type, ignored

_NAMED = "nothing but the schema says what is written"
Grammar = dict[str, Any]


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]

    def grammar(self) -> Grammar | None:
        """As the served model takes it."""
        return None


class ObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]

    def grammar(self) -> Grammar | None:
        """As the served model takes it."""
        return {"json_object": True}


class Schema(Strict):
    """``json_schema`` of a chat's ``response_format``."""

    name: Text | None = Field(default=None, description="of the schema; the model is not told")
    description: Text | None = ignored(why=_NAMED)
    schema_: Object = Field(alias="schema", description="JSON Schema of the answer, kept to whatever strict is")
    strict: bool | None = None


class SchemaFormat(Strict):
    """JSON of a schema, in a chat."""

    type: Literal["json_schema"]
    json_schema: Schema

    def grammar(self) -> Grammar | None:
        """As the served model takes it."""
        return {"json_schema": self.json_schema.schema_}


class FlatSchemaFormat(Schema):
    """JSON of a schema, in a request for a response."""

    type: Literal["json_schema"]

    def grammar(self) -> Grammar | None:
        """As the served model takes it."""
        return {"json_schema": self.schema_}


_TYPE = by_type("text", "json_object", "json_schema", otherwise="text")
ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("~text")]
    | Annotated[ObjectFormat, Tag("~json_object")]
    | Annotated[SchemaFormat, Tag("~json_schema")],
    _TYPE,
]
FlatFormat = Annotated[
    Annotated[TextFormat, Tag("~text")]
    | Annotated[ObjectFormat, Tag("~json_object")]
    | Annotated[FlatSchemaFormat, Tag("~json_schema")],
    _TYPE,
]


def grammars(
    form: TextFormat | ObjectFormat | SchemaFormat | FlatSchemaFormat | None, **others: Any
) -> Iterator[Grammar]:
    """Every grammar that a request asks for: that of its format, and those named in ``others`` that are not None."""
    if form is not None and (found := form.grammar()) is not None:
        yield found
    for name, value in others.items():
        if value is not None:
            yield {name: value}


def with_instruction(messages: list[dict[str, Any]], form: Grammar | None) -> list[dict[str, Any]]:
    """The messages, the first of which tells the model of the form: what it does not expect it fills in badly.

    Args:
        messages: as the served model takes them.
        form: of the answer; what is no JSON is not told.
    """
    if form is not None and "json_schema" in form:
        schema = json.dumps(form["json_schema"], ensure_ascii=False)
        told = f"Answer with JSON of this schema, its keys in this order:\n{schema}"
    elif form is not None and "json_object" in form:
        told = "Answer with a JSON object."
    else:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": told}, *messages]
    return [{**messages[0], "content": f"{messages[0]['content']}\n\n{told}"}, *messages[1:]]
