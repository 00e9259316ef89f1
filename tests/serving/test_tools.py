"""Tools through the gateway, called by a model whose random weights keep to nothing by themselves."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from triton_repo.client.blocking import BlockingClient
from triton_repo.client.failures import Refused

pytestmark = [pytest.mark.server, pytest.mark.slow]
ASKED: Any = [{"role": "user", "content": "red lamp"}]
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "note": {"type": "string", "maxLength": 8},
    },
    "required": ["city", "days", "note"],
    "additionalProperties": False,
}
WEATHER = {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS, "strict": True}
PING = {"name": "ping", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
TOOLS: Any = [{"type": "function", "function": WEATHER}, {"type": "function", "function": PING}]
FLAT: Any = [{"type": "function", **WEATHER}, {"type": "function", **PING}]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


def ask(wide_api: openai.OpenAI, **more: Any) -> Any:
    return wide_api.chat.completions.create(
        **{"model": "diffgemma", "messages": ASKED, "tools": TOOLS, "max_tokens": 60, **more}
    )


def check(name: str, arguments: str) -> None:
    found = json.loads(arguments)
    if name == "ping":
        assert found == {}
        return
    assert name == "get_weather"
    assert set(found) == {"city", "days", "note"}
    assert found["city"] in ("Oslo", "Rome")
    assert 1 <= found["days"] <= 9
    assert len(found["note"]) <= 8


@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_model_that_has_to_call_calls(wide_api: openai.OpenAI, choice: Any, seed: int) -> None:
    (found,) = ask(wide_api, tool_choice=choice, parallel_tool_calls=False, seed=seed).choices
    assert (found.finish_reason, found.message.content) == ("tool_calls", None)
    (call,) = found.message.tool_calls
    assert call.type == "function"
    check(call.function.name, call.function.arguments)
    if choice == NAMED:
        assert call.function.name == "get_weather"


def test_none_calls_nothing_and_auto_may(wide_api: openai.OpenAI) -> None:
    for seed in range(3):
        (found,) = ask(wide_api, tool_choice="none", seed=seed, max_tokens=20).choices
        assert found.message.tool_calls is None
        (found,) = ask(wide_api, seed=seed, max_tokens=40).choices
        calls = found.message.tool_calls or []
        assert (found.finish_reason == "tool_calls") == bool(calls)
        for call in calls:
            check(call.function.name, call.function.arguments)
        assert "call:" not in (found.message.content or "")


def test_several_calls_in_an_answer_have_ids_of_their_own(wide_api: openai.OpenAI) -> None:
    found = [ask(wide_api, tool_choice="required", seed=seed).choices[0].message.tool_calls for seed in range(6)]
    ids = [call.id for calls in found for call in calls]
    assert len(set(ids)) == len(ids)
    for calls in found:
        for call in calls:
            check(call.function.name, call.function.arguments)


def test_a_stream_has_whole_calls(wide_api: openai.OpenAI) -> None:
    whole = ask(wide_api, tool_choice="required", seed=3).choices[0].message.tool_calls
    chunks = [chunk.choices[0] for chunk in ask(wide_api, tool_choice="required", seed=3, stream=True) if chunk.choices]
    sent = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    said = [(call.function.name, call.function.arguments) for call in sent]
    assert said == [(call.function.name, call.function.arguments) for call in whole]
    assert [call.index for call in sent] == list(range(len(sent)))
    assert chunks[-1].finish_reason == "tool_calls"
    assert "".join(chunk.delta.content or "" for chunk in chunks) == ""


def test_a_round_trip_of_a_chat(wide_api: openai.OpenAI) -> None:
    class Answer(BaseModel):
        warm: bool

    message = ask(wide_api, tool_choice=NAMED, parallel_tool_calls=False).choices[0].message
    history = [*ASKED, message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "9 degrees"}]
    found = wide_api.chat.completions.parse(
        model="diffgemma", messages=history, tools=TOOLS[:1], tool_choice="none", response_format=Answer, max_tokens=40
    )
    assert isinstance(found.choices[0].message.parsed, Answer)
    # what the history says is in the prompt
    assert found.usage.prompt_tokens > ask(wide_api, tool_choice="none", max_tokens=1).usage.prompt_tokens


def test_a_round_trip_of_responses(wide_api: openai.OpenAI) -> None:
    asked: Any = {"model": "diffgemma", "tools": FLAT, "max_output_tokens": 60, "parallel_tool_calls": False}
    named = {"type": "function", "name": "get_weather"}
    first = wide_api.responses.create(**asked, input="red lamp", tool_choice=named)
    assert (first.status, [item.type for item in first.output]) == ("completed", ["function_call"])
    call: Any = first.output[0]
    check(call.name, call.arguments)
    history: Any = [{"role": "user", "content": "red lamp"}, *first.output]
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "9 degrees"})
    assert wide_api.responses.create(**asked, input=history, tool_choice="none").output[0].type == "message"
    with wide_api.responses.stream(**asked, input="red lamp", tool_choice=named) as stream:
        events = list(stream)
        final: Any = stream.get_final_response().output[0]
    assert (final.name, final.arguments) == (call.name, call.arguments)
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[2:-1] == [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))


def function(**change: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {**WEATHER, **change}}]}


@pytest.mark.parametrize(
    ("change", "message", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "none of tools", "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "required needs tools", "tool_choice"),
        ({"tool_choice": "always"}, "tool_choice", "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "'function'", "tools[0].type"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "another tool has this name", "tools[1]"),
        (function(name="a b"), "1 to 64 letters", None),
        (function(parameters={"type": "array"}), '"type": "object"', None),
        (
            function(parameters={"type": "object", "properties": {"a": {"type": "object", "x": 1}}}),
            r"\$\.properties\.a",
            "tools[0].function.parameters",
        ),
        ({"messages": [{"role": "tool", "tool_call_id": "c", "content": "1"}]}, "no call", "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "content": "1"}]}, "has one", "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "a", "tool_call_id": "c"}]}, "no other", "messages[0].tool_call_id"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "[1]"}}],
                    }
                ]
            },
            "JSON of an object",
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"max_tokens": 2, "tool_choice": "required"}, "max_tokens: 2 cannot be used; allowed: at least", "max_tokens"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    wide_api: openai.OpenAI, change: Any, message: str, param: Any
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        ask(wide_api, **change)
    if param is not None:
        assert refused.value.param == param


def test_grpc_has_calls_and_declares_tools(wide_client: BlockingClient) -> None:
    grammar = {"tools": {"functions": [WEATHER], "choice": "required", "parallel": False}}
    said: Any = [{"role": "user", "content": "red"}]
    (found,) = wide_client.generate(messages=said, grammar=grammar, max_tokens=60, stream=False)
    (call,) = map(json.loads, found.tool_calls)
    check(call["name"], json.dumps(call["arguments"]))
    (plain,) = wide_client.generate(messages=said, max_tokens=1, stream=False)
    assert found.num_input_tokens > plain.num_input_tokens + 20
    for wrong in ({"role": "tool", "content": 1}, {"role": "user", "content": "a", "tool_calls": []}):
        with pytest.raises(Refused, match=r"messages\[0\]"):
            list(wide_client.generate(messages=[wrong], max_tokens=1))
