"""What the gateway refuses, with which status, naming the field; all of it before anything runs."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.serving.gateway import Running, request
from triton_repo.gateway import app
from triton_repo.gateway.middleware import MOST_BODY_BYTES

pytestmark = pytest.mark.server

CHAT: dict[str, Any] = {"model": "diffgemma", "messages": [{"role": "user", "content": "red"}], "max_tokens": 1}
TEXT: dict[str, Any] = {"model": "diffgemma", "prompt": "red", "max_tokens": 1}
TOOL = {"type": "function", "function": {"name": "f"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


def test_the_page_has_every_status() -> None:
    """Of the schema, and so of what the gateway answers with."""
    described = {str(status) for status in app.STATUSES if status != 200}
    page = (Path(__file__).parents[2] / "docs" / "openai.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| (\d{3}) \| `", page, re.MULTILINE)) == described


def refusal(gateway: Running, body: Any) -> tuple[int, str | None, str]:
    endpoint = "completions" if isinstance(body, dict) and "prompt" in body else "chat/completions"
    status, _, answer = request(f"{gateway.url}/v1/{endpoint}", json.dumps(body).encode())
    return status, answer["error"]["param"], answer["error"]["message"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"temperature": 2.5}, "temperature: 2.5 cannot be used; allowed: at most 2"),
        ({"temperature": True}, "temperature: true cannot be used; allowed: a finite"),
        ({"top_p": -0.1}, "top_p: -0.1 cannot be used; allowed: at least 0"),
        ({"presence_penalty": 0.1}, "presence_penalty: not supported here"),
        ({"frequency_penalty": 0.1}, "frequency_penalty: not supported here"),
        ({"logit_bias": {"5": 1}}, "logit_bias: not supported here"),
        ({"logprobs": True}, "logprobs: not supported here"),
        ({"top_logprobs": 2}, "top_logprobs: not supported here"),
        ({"tools": [TOOL, TOOL]}, "tools[1]: another tool has this name"),
        ({"tool_choice": "required"}, "tool_choice: required needs tools"),
        ({"functions": [{"name": "f"}]}, "functions: not supported here"),
        (
            {"response_format": {"type": "xml"}},
            "response_format.type: \"xml\" cannot be used; allowed: 'text', 'json_object' or 'json_schema'",
        ),
        ({"response_format": {"type": ["text"]}}, 'response_format.type: ["text"] cannot be used'),
        ({"response_format": {}}, "response_format.type: this field is required"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "\ud800"}}}},
            "response_format.json_schema.schema: ",
        ),
        ({"tool_choice": 5}, "tool_choice: 5 cannot be used; allowed: 'none', 'auto' or 'required'"),
        ({"tools": [{**TOOL, "function": {"name": "a b"}}]}, "tools[0].function.name: 'a b' cannot be used"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"modalities": ["audio"]}, "modalities: not supported here"),
        ({"top_k": 40}, "top_k: not supported here: tokens are accepted by entropy"),
        ({"min_p": 0.05}, "min_p: not supported here"),
        ({"repetition_penalty": 1.1}, "repetition_penalty: not supported here"),
        ({"length_penalty": 2}, "length_penalty: not supported here"),
        ({"max_new_tokens": 5}, "max_new_tokens: there is no such field"),
        ({"max_tokens": "5"}, 'max_tokens: "5" cannot be used; allowed: an integer; fix: '),
        ({"max_tokens": 0}, "max_tokens: 0 cannot be used; allowed: at least 1; fix: "),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens: not the same as max_tokens"),
        ({"seed": -2}, "seed: -2 cannot be used; allowed: at least -1"),
        ({"seed": 2**64 - 1, "n": 2}, "seed: seed + n - 1 has to fit into 64 bits"),
        ({"n": 65}, "n: 65 cannot be used; allowed: at most 64"),
        ({"stop": ["a"] * 65}, "stop: ["),
        ({"stop": 5}, "stop: 5 cannot be used; allowed: a text"),
        ({"draft_every": 2}, "draft_every: only with stream=true"),
        ({"t_min": 2.0}, "t_max: "),
        ({"messages": []}, "messages: [] cannot be used; allowed: a list of at least 1"),
        (
            {"messages": [{"role": "wizard", "content": "red"}]},
            'messages[0].role: "wizard" cannot be used',
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content: a message of this role needs one"),
        (
            {"messages": [{"role": "user", "content": [IMAGE]}]},
            'messages[0].content[0].type: "image_url"',
        ),
        ({"cache_salt": "x" * 129}, "cache_salt: "),
        ({"chat_template": "{{ 7 * 7 }}"}, "chat_template: "),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_field_that_cannot_be_honoured_is_named(gateway: Running, change: dict[str, Any], text: str) -> None:
    status, param, message = refusal(gateway, {**CHAT, **change})
    assert status == 400
    assert message.startswith(text)
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


@pytest.mark.parametrize(
    ("path", "change", "text"),
    [
        ("responses", {"text": {"format": {"type": "xml"}}}, "text.format.type: "),
        (
            "responses",
            {"text": {"format": {"type": "json_schema", "schema": {"type": "strange"}}}},
            "text.format at $.type: 'strange'",
        ),
        ("responses", {"tools": [{"type": "web_search"}]}, 'tools[0].type: "web_search"'),
        ("responses", {"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name: 'a b'"),
        (
            "responses",
            {"tools": [{"type": "function", "name": "a", "parameters": {"type": "array"}}]},
            "tools[0].parameters: ",
        ),
        ("responses", {"input": [{"type": "reasoning"}]}, 'input[0].type: "reasoning" cannot be used; allowed: \'mess'),
        ("responses", {"input": "a" * 100_000}, "input: '100"),
    ],
)
def test_a_refusal_of_the_model_names_the_endpoints_own_field(
    gateway: Running, path: str, change: dict[str, Any], text: str
) -> None:
    body = {"model": "diffgemma", "input": "red", "max_output_tokens": 8, **change}
    status, _, answer = request(f"{gateway.url}/v1/{path}", json.dumps(body).encode())
    assert (status, answer["error"]["param"]) == (400, text.split(":")[0].split(" ")[0])
    assert answer["error"]["message"].startswith(text)


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


def test_nothing_that_a_request_names_is_fetched(gateway: Running) -> None:
    """Whatever kind of part names an address, it is refused, and nobody calls there; as text it is text."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for url in (
            f"http://127.0.0.1:{listening.getsockname()[1]}/x",
            "file:///etc/hostname",
            "https://example.org/x",
        ):
            for kind in ("image_url", "video_url", "audio_url", "input_image", "file"):
                part = {"type": kind, kind: {"url": url}}
                status, param, _ = refusal(gateway, {**CHAT, "messages": [{"role": "user", "content": [part]}]})
                assert (status, param) == (400, "messages[0].content[0].type")
            for more in ({"media": url}, {"mm_processor_kwargs": {"url": url}}, {"model": url}):
                assert refusal(gateway, {**CHAT, **more})[0] in (400, 404)
            body = json.dumps({**CHAT, "messages": [{"role": "user", "content": f"see {url}"}]}).encode()
            assert request(f"{gateway.url}/v1/chat/completions", body)[0] == 200
        listening.settimeout(0)
        with pytest.raises(BlockingIOError):
            listening.accept()


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
                api.completions.create(model="diffgemma", prompt="red", max_tokens=0, stream=stream)
            assert refused.value.param == "max_tokens"
