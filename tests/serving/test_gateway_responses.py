"""OpenAI's Responses API, as its official client reads it, answers what a chat answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from tests.serving.gateway import Running

pytestmark = pytest.mark.server

MORE = {"ignore_eos": True, "max_denoising_steps": 3}
EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    *["response.output_text.delta"] * 3,
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.incomplete",
]


@pytest.fixture
def api(gateway: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as connected:
        yield connected


def chat(api: openai.OpenAI, messages: Any, **more: Any) -> Any:
    return api.chat.completions.create(model="diffgemma", messages=messages, **more)


def respond(api: openai.OpenAI, **more: Any) -> Any:
    return api.responses.create(**{"model": "diffgemma", "input": "blue lamp", **more})


def test_a_response_is_what_a_chat_answers(api: openai.OpenAI) -> None:
    user: Any = {"role": "user", "content": "blue lamp"}
    expected = chat(api, [user], max_tokens=40, extra_body=MORE)
    found = respond(api, max_output_tokens=40, metadata={"team": "x"}, extra_body=MORE)
    # What the client would take as it comes has to be whole, by the client's own types.
    Response.model_validate(found.model_dump(), strict=True)
    assert found.output_text == expected.choices[0].message.content
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (found.object, found.model, found.metadata) == ("response", "diffgemma", {"team": "x"})
    usage = (found.usage.input_tokens, found.usage.output_tokens, found.usage.total_tokens)
    assert usage == (expected.usage.prompt_tokens, 40, expected.usage.total_tokens)
    assert found.usage.model_extra["diffgemma"] == expected.usage.model_extra["diffgemma"]
    system: Any = {"role": "system", "content": "größe"}
    told = respond(api, instructions="größe", max_output_tokens=40, extra_body=MORE)
    assert told.output_text == chat(api, [system, user], max_tokens=40, extra_body=MORE).choices[0].message.content
    assert told.instructions == "größe"


def test_a_response_goes_on_with_its_own_output(api: openai.OpenAI) -> None:
    first = respond(api, max_output_tokens=8, extra_body=MORE)
    asked: Any = {"role": "user", "content": "blue lamp"}
    history = [asked, *first.output, {"role": "user", "content": [{"type": "input_text", "text": "and?"}]}]
    found = respond(api, input=history, max_output_tokens=8, extra_body=MORE)
    same: Any = [asked, {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "and?"}]
    assert found.output_text == chat(api, same, max_tokens=8, extra_body=MORE).choices[0].message.content


def test_a_stream_has_the_events_of_the_official_client(api: openai.OpenAI) -> None:
    whole = respond(api, max_output_tokens=40, extra_body=MORE)
    events = list(respond(api, max_output_tokens=40, stream=True, extra_body=MORE))
    assert [event.type for event in events] == EVENTS
    assert [event.sequence_number for event in events] == list(range(len(EVENTS)))
    for event in events:
        type(event).model_validate(event.model_dump(), strict=True)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[7].text == whole.output_text
    last = events[-1].response
    assert (last.status, last.usage, last.output_text) == ("incomplete", whole.usage, whole.output_text)
    assert events[0].response.status == "in_progress"
    assert last.output[0].id == events[2].item.id == events[4].item_id


def test_the_stream_helper_of_the_official_client(api: openai.OpenAI) -> None:
    text = respond(api, max_output_tokens=40, extra_body=MORE).output_text
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    more: Any = {"max_output_tokens": 40, "extra_body": {**MORE, "stop": stop}}
    with api.responses.stream(model="diffgemma", input="blue lamp", **more) as stream:
        final = stream.get_final_response()
    assert final.output_text == text[: text.index(stop)]
    assert (final.status, final.incomplete_details) == ("completed", None)


def test_a_stream_that_fails_says_so_in_its_last_event(api: openai.OpenAI) -> None:
    late = {"ignore_eos": True, "max_denoising_steps": 1024, "deadline": 0.2}
    *_, last = respond(api, stream=True, extra_body=late)
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert (last.response.error.code, "deadline" in last.response.error.message) == ("server_error", True)


def test_what_it_cannot_do_is_refused_by_name(api: openai.OpenAI) -> None:
    for field, value in (
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("background", True),
    ):
        with pytest.raises(openai.BadRequestError, match=f"{field}: not supported here") as refused:
            respond(api, extra_body={field: value})
        assert (refused.value.param, refused.value.code) == (field, "unsupported_parameter")
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve("resp_1")
