"""Answers of a guaranteed form through Triton and the gateway, of a model whose random weights keep to none."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from triton_repo.client.blocking import BlockingClient
from triton_repo.client.failures import Refused

pytestmark = [pytest.mark.server, pytest.mark.slow]
ASKED: Any = [{"role": "user", "content": "Who orders what?"}]


class Item(BaseModel):
    name: str
    count: int


class Order(BaseModel):
    customer: str
    items: list[Item]
    day: Literal["Monday", "Tuesday"]
    paid: bool


@pytest.mark.parametrize("seed", range(3))
def test_openai_parses_a_pydantic_model(wide_api: openai.OpenAI, seed: int) -> None:
    found = wide_api.chat.completions.parse(
        model="diffgemma", messages=ASKED, response_format=Order, seed=seed, max_tokens=60
    )
    assert isinstance(found.choices[0].message.parsed, Order)
    assert found.choices[0].finish_reason == "stop"
    canvases = found.usage.model_extra["diffgemma"]["choices"][0]["canvases"]
    assert all(canvas["form_log_probability"] <= 0 for canvas in canvases)


def test_openai_parses_a_response(wide_api: openai.OpenAI) -> None:
    found = wide_api.responses.parse(
        model="diffgemma", input="Who orders what?", text_format=Order, max_output_tokens=60
    )
    assert isinstance(found.output_parsed, Order)


def test_a_stream_and_a_whole_answer_are_the_same_json(wide_api: openai.OpenAI) -> None:
    asked = {"model": "diffgemma", "messages": ASKED, "max_tokens": 40, "response_format": {"type": "json_object"}}
    whole = wide_api.chat.completions.create(**asked).choices[0].message.content
    assert isinstance(json.loads(whole), dict)
    chunks = wide_api.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole


def test_texts_and_regular_expressions(wide_api: openai.OpenAI) -> None:
    def ask(**form: Any) -> str:
        found = wide_api.completions.create(model="diffgemma", prompt="Is it so?", max_tokens=12, extra_body=form)
        assert found.choices[0].finish_reason == "stop"
        return found.choices[0].text

    assert ask(choice=["yes", "no"]) in ("yes", "no")
    assert re.fullmatch("[a-f]{2}-[0-9]+", ask(regex="[a-f]{2}-[0-9]+"))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"regex": "(?=a)b"}, r"regex: '\(\?=a\)b'"),
        ({"regex": "a", "choice": ["b"]}, "one form of the answer at a time"),
        ({"choice": []}, "choice"),
        ({"whitespace": "compact"}, "whitespace: only where the answer is to be JSON"),
        ({"regex": "a{40}", "stop": "a"}, "stop"),
        ({"regex": "[a-c]{60}"}, "max_tokens: 12 cannot be used; allowed: at least"),
    ],
)
def test_what_cannot_be_guaranteed_is_refused_by_name(wide_api: openai.OpenAI, form: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        wide_api.completions.create(model="diffgemma", prompt="Is it so?", max_tokens=12, extra_body=form)


def test_grpc_takes_a_grammar_and_says_how_likely_the_form_was(wide_client: BlockingClient) -> None:
    responses = list(wide_client.generate("Is it so?", grammar={"choice": ["yes", "no"]}, max_tokens=8, stream=False))
    assert responses[-1].text in ("yes", "no")
    assert [value <= 0 for value in responses[-1].form_log_probability] == [True]
    with pytest.raises(Refused, match="grammar: .*exactly one of"):
        list(wide_client.generate("Is it so?", grammar={"regex": "a", "choice": ["b"]}, max_tokens=8))
    schema = {"type": "object", "properties": {"a": {"type": "strange"}}}
    with pytest.raises(Refused, match=r"grammar\.json_schema at \$\.properties\.a"):
        list(wide_client.generate("Is it so?", grammar={"json_schema": schema}, max_tokens=8))


def test_the_schema_is_in_the_prompt(wide_api: openai.OpenAI) -> None:
    def tokens(**form: Any) -> int:
        asked: Any = {"model": "diffgemma", "messages": ASKED, "max_tokens": 60, **form}
        return int(wide_api.chat.completions.create(**asked).usage.prompt_tokens)

    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    plain, object_, whole = tokens(), tokens(response_format={"type": "json_object"}), tokens(response_format=form)
    assert plain < object_ < whole


HOSTILE: dict[str, dict[str, Any]] = {
    "repeats": {"regex": "a{1000000}"},
    "repeats of repeats": {"regex": "((a{1000}){1000}){1000}"},
    "exponential": {"regex": "(a|b)*a(a|b){40}"},
    "nested": {"regex": "(" * 5000 + "a" + ")" * 5000},
    "enum": {"json_schema": {"enum": [f"{i:06}" for i in range(60_000)]}},
    "deep": {"json_schema": json.loads('{"items":' * 400 + "{}" + "}" * 400)},
    "definitions": {
        "json_schema": {
            "$ref": "#/$defs/d0",
            "$defs": {
                f"d{i}": {"type": "array", "items": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 8}} for i in range(300)
            }
            | {"d300": {"type": "null"}},
        }
    },
    "recursive": {
        "json_schema": {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"type": "object", "properties": {f"k{i}": {"$ref": "#/$defs/a"} for i in range(20)}}},
        }
    },
    "bounds": {"json_schema": {"type": "array", "items": {"type": "string", "maxLength": 10**6}, "maxItems": 10**6}},
}


def test_hostile_forms_end_within_their_limits_and_hurt_nobody(wide_client: BlockingClient) -> None:
    """Each is refused by name in a process of its own; who asks meanwhile is answered."""

    def ask(grammar: Any) -> str:
        try:
            return next(iter(wide_client.generate("red", grammar=grammar, max_tokens=16, stream=False))).text
        except Refused as refusal:
            return f"refused {refusal}"

    with ThreadPoolExecutor(len(HOSTILE) + 1) as pool:
        waiting = {name: pool.submit(ask, grammar) for name, grammar in HOSTILE.items()}
        honest = [pool.submit(ask, {"choice": ["yes", "no"]}).result() for _ in range(5)]
        found = {name: each.result() for name, each in waiting.items()}
    assert set(honest) <= {"yes", "no"}
    assert {name: text for name, text in found.items() if not text.startswith("refused grammar.")} == {}
