"""What the gateway refuses, with which status, naming the field; all of it before anything runs."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.serving.gateway import Running, request
from triton_repo.gateway.middleware import MOST_BODY_BYTES

pytestmark = pytest.mark.server

CHAT: dict[str, Any] = {"model": "diffgemma", "messages": [{"role": "user", "content": "red"}], "max_tokens": 1}
TEXT: dict[str, Any] = {"model": "diffgemma", "prompt": "red", "max_tokens": 1}
TOOL = {"type": "function", "function": {"name": "f"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


def refusal(gateway: Running, body: Any) -> tuple[int, str | None, str]:
    endpoint = "completions" if isinstance(body, dict) and "prompt" in body else "chat/completions"
    status, _, answer = request(f"{gateway.url}/v1/{endpoint}", json.dumps(body).encode())
    return status, answer["error"]["param"], answer["error"]["message"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"temperature": 2.5}, "temperature: Input should be less than or equal to 2"),
        ({"temperature": True}, "temperature: Input should be a valid number"),
        ({"top_p": -0.1}, "top_p: Input should be greater than or equal to 0"),
        ({"presence_penalty": 0.1}, "presence_penalty: not supported here"),
        ({"frequency_penalty": 0.1}, "frequency_penalty: not supported here"),
        ({"logit_bias": {"5": 1}}, "logit_bias: not supported here"),
        ({"logprobs": True}, "logprobs: not supported here"),
        ({"top_logprobs": 2}, "top_logprobs: not supported here"),
        ({"tools": [TOOL]}, "tools: not supported here"),
        ({"tool_choice": "required"}, "tool_choice: not supported here"),
        ({"functions": [{"name": "f"}]}, "functions: not supported here"),
        ({"response_format": {"type": "json_object"}}, "response_format: not supported here"),
        ({"modalities": ["audio"]}, "modalities: not supported here"),
        ({"store": True}, "store: not supported here"),
        ({"reasoning_effort": "high"}, "reasoning_effort: not supported here"),
        ({"max_new_tokens": 5}, "max_new_tokens: there is no such field"),
        ({"max_tokens": "5"}, "max_tokens: Input should be a valid integer"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens: not the same as max_tokens"),
        ({"max_tokens": 5000}, "max_tokens: 5000 cannot be used; allowed: at most"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"seed": 2**64 - 1, "n": 2}, "seed: seed + n - 1 has to fit into 64 bits"),
        ({"n": 65}, "n: Input should be less than or equal to 64"),
        ({"stop": ["a"] * 5}, "stop: List should have at most 4 items"),
        ({"stop": 5}, "stop: Input should be a valid string"),
        ({"stream_options": {"include_usage": True}}, "stream_options: only with stream=true"),
        ({"draft_every": 2}, "draft_every: only with stream=true"),
        ({"t_min": 2.0}, "t_max: "),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "wizard", "content": "red"}]}, "messages[0].role: Input should be 'system'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: Field required"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type: Input should be 'text'"),
        ({"messages": [{"role": "user", "content": "red", "name": "Ada"}]}, "messages[0].name: not supported here"),
        ({"user": "x" * 2000}, "user: "),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_field_that_cannot_be_honoured_is_named(gateway: Running, change: dict[str, Any], text: str) -> None:
    status, param, message = refusal(gateway, {**CHAT, **change})
    assert status == 400
    assert message.startswith(text) or (text == "user: " and message.startswith("client: "))
    assert param == text.split(":")[0]


def test_completions_have_refusals_of_their_own(gateway: Running) -> None:
    for change, param in (
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 0}, "logprobs"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["red", 5]}, "prompt[1]"),
        ({"prompt": [5, 10**6]}, "prompt"),
        ({"prompt": ["red"] * 33, "n": 2}, "n"),
        ({"prompt": ""}, "prompt"),
        ({"messages": []}, "messages"),
    ):
        assert refusal(gateway, {**TEXT, **change})[:2] == (400, param)


def test_neutral_values_are_accepted(gateway: Running) -> None:
    neutral = {
        "temperature": 1.0,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "n": 1,
        "stop": None,
        "stream": False,
        "user": "ada",
    }
    chat = {"logprobs": False, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "store": False}
    for endpoint, body in (
        ("chat/completions", CHAT | neutral | chat),
        ("completions", TEXT | neutral | {"echo": False, "best_of": 1, "logprobs": None, "suffix": None}),
    ):
        status, _, _ = request(f"{gateway.url}/v1/{endpoint}", json.dumps(body).encode())
        assert status == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b'"red"', b"\xff", b"[" * 100_000, b'{"model": 1e999999}'])
def test_a_body_that_is_no_json_object(gateway: Running, body: bytes) -> None:
    status, _, answer = request(f"{gateway.url}/v1/chat/completions", body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


def test_a_body_that_is_too_large(gateway: Running) -> None:
    body = json.dumps({**TEXT, "prompt": "x" * MOST_BODY_BYTES}).encode()
    status, _, answer = request(f"{gateway.url}/v1/completions", body)
    assert (status, answer["error"]["code"]) == (413, "request_too_large")


def test_paths_and_methods_that_do_not_exist(gateway: Running) -> None:
    status, _, answer = request(f"{gateway.url}/v1/embeddings", b"{}")
    assert (status, answer["error"]["code"]) == (404, "not_found")
    status, headers, answer = request(f"{gateway.url}/v1/completions")
    assert (status, headers["allow"], answer["error"]["code"]) == (405, "POST", "method_not_allowed")


def test_the_official_client_raises_its_own_errors(gateway: Running) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as api:
        with pytest.raises(openai.BadRequestError, match="presence_penalty: not supported here") as bad:
            api.completions.create(model="diffgemma", prompt="red", presence_penalty=0.5)
        assert (bad.value.param, bad.value.code) == ("presence_penalty", "unsupported_parameter")
        for stream in (False, True):
            with pytest.raises(openai.NotFoundError) as missing:
                api.completions.create(model="other", prompt="red", stream=stream)
            assert missing.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError) as refused:
                api.completions.create(model="diffgemma", prompt="red", max_tokens=5000, stream=stream)
            assert refused.value.param == "max_tokens"
