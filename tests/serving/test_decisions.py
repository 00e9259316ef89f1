"""Typed decisions through tritonserver: OpenAI's client, NVIDIA's, ours, and what is refused."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from openai import OpenAI
from tritonclient.utils import InferenceServerException

from tests.serving.gateway import Running, request
from triton_repo.client.blocking import BlockingClient
from triton_repo.client.failures import Refused, TimedOut
from triton_repo.launcher.server import Server
from triton_repo.tensors import DECIDE_MODEL
from trtllm_build import Engine
from trtllm_build.decisions.decide import decide

pytestmark = pytest.mark.server

TEXT = "A red chair and a green lamp."
PREDICATE = {"type": "predicate", "instructions": "It is red.", "name": "red"}
CHOICE = {"type": "choice", "instructions": "Which?", "choices": [{"value": True}, {"value": "true"}, {"value": "b"}]}
SCORE = {"type": "score", "instructions": "How?", "levels": [{"label": "low"}, {"label": "high"}]}
ALL: list[Any] = [PREDICATE, CHOICE, SCORE]


@pytest.fixture
def openai(gateway: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def post(gateway: Running, path: str = "/v1/decisions", **changes: Any) -> tuple[int, dict[str, Any]]:
    body = {"model": "diffgemma", "input": TEXT, "questions": ALL} if path == "/v1/decisions" else {}
    status, _, answer = request(gateway.url + path, json.dumps(body | changes).encode())
    return status, answer


def test_openais_client_gets_what_the_engine_reads(openai: OpenAI, engine: Engine) -> None:
    found = openai.decisions.create(model="diffgemma", input=TEXT, questions=ALL, safety_identifier="x")
    expected = decide(engine, TEXT, ALL)
    assert [answer.to_dict() for answer in found.answers] == expected
    predicate, choice, score = found.answers
    assert predicate.type == "predicate"
    assert choice.type == "choice"
    assert [p.value for p in choice.probabilities] == [True, "true", "b"]
    assert isinstance(choice.probabilities[0].value, bool)
    assert score.type == "score"
    assert found.usage.output_tokens == 3
    assert found.usage.total_tokens == found.usage.input_tokens + 3


def test_options_of_ours_go_into_the_extra_body(openai: OpenAI, engine: Engine) -> None:
    ours: dict[str, Any] = {"samples": 3, "order": "permute", "joint": True, "seed": 7}
    asked = [{**q, "instructions": "a"} for q in (PREDICATE, SCORE)]
    found = openai.decisions.create(model="diffgemma", input="b", questions=asked, extra_body=ours)  # type: ignore[arg-type]
    assert [a.to_dict() for a in found.answers] == decide(engine, "b", asked, **ours)


def test_a_whole_conversation_is_read(openai: OpenAI, engine: Engine) -> None:
    conversation: list[Any] = [
        {"role": "developer", "content": "a"},
        {"role": "system", "content": [{"type": "input_text", "text": "b"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "c"}, {"type": "input_json", "data": {"k": [1]}}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "d"}, {"type": "refusal", "refusal": "e"}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"x": 1}'},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "g"}]},
        {"type": "custom_tool_call", "call_id": "2", "name": "h", "input": "i"},
        {"type": "custom_tool_call_output", "call_id": "2", "output": "j"},
    ]
    found = openai.decisions.create(model="diffgemma", input=conversation, questions=[PREDICATE])
    said = [
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": 'c\n{"k": [1]}'},
        {"role": "assistant", "content": 'd\ne\n\nf({"x": 1})'},
        {"role": "user", "content": "f gave: g"},
        {"role": "assistant", "content": "h(i)"},
        {"role": "user", "content": "h gave: j"},
    ]
    assert [a.to_dict() for a in found.answers] == decide(engine, said, [PREDICATE])


def test_a_text_is_encoded_once(openai: OpenAI) -> None:
    asked: list[Any] = [{**PREDICATE, "instructions": f"{i}?", "name": str(i)} for i in range(64)]
    text = "Window, table, lamp: which of these is of glass?"
    first, again = (openai.decisions.create(model="diffgemma", input=text, questions=asked) for _ in range(2))
    assert first.answers == again.answers
    assert (first.usage.input_tokens_details.cached_tokens, first.usage.output_tokens) == (0, 64)
    assert again.usage.input_tokens_details.cached_tokens > len("Window, table, lamp") // 2
    other = openai.decisions.create(model="diffgemma", input=text, questions=asked, prompt_cache_key="another")
    assert other.answers == first.answers
    assert other.usage.input_tokens_details.cached_tokens == 0


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": "gpt-6-luna"}, "model"),
        ({"input": []}, "input"),
        ({"questions": []}, "questions"),
        ({"questions": [PREDICATE] * 401}, "questions"),
        ({"questions": [{"type": "noul", "instructions": "a"}]}, "questions[0].type"),
        ({"questions": [{"type": "predicate"}]}, "questions[0].instructions"),
        ({"questions": [{**PREDICATE, "choices": CHOICE["choices"]}]}, "questions[0].choices"),
        ({"questions": [{"type": "choice", "instructions": "a"}]}, "questions[0].choices"),
        ({"questions": [{**CHOICE, "choices": [{"value": "a"}]}]}, "questions[0].choices"),
        ({"questions": [{**CHOICE, "choices": [{"value": 1}, {"value": "b"}]}]}, "questions[0].choices[0].value"),
        ({"questions": [{**CHOICE, "choices": [{"value": "b"}] * 2}]}, "questions[0].choices[1].value"),
        ({"questions": [{**CHOICE, "choices": [{"value": str(i)} for i in range(255)]}]}, "questions[0].choices"),
        ({"questions": [{**PREDICATE, "instructions": [{"type": "output_text", "text": "a"}]}]}, None),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]}, None),
        ({"input": [{"role": "tool", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "system", "content": [{"type": "input_json", "data": {}}]}]}, None),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "a"}]}, "input[0].call_id"),
        ({"input": "long " * 2000}, "input"),
        ({"input": [{"type": "reasoning"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_json", "data": {"a": "\ud800"}}]}]}, None),
        ({"samples": 0}, "samples"),
        ({"samples": 17}, "samples"),
        ({"order": "random"}, "order"),
        ({"cache_salt": "a", "prompt_cache_key": "b"}, "prompt_cache_key"),
        ({"temperature": 1}, "temperature"),
        ({"questions": [{**PREDICATE, "instructions": [{"type": "input_json", "data": {"a": [0] * 10_000}}]}]}, None),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(gateway: Running, changes: dict[str, Any], param: str) -> None:
    status, answer = post(gateway, **changes)
    assert status == (404 if param == "model" else 400), answer
    if param is not None:
        assert answer["error"]["param"] == param, answer
    else:
        assert answer["error"]["param"], answer


def test_system_one(gateway: Running, engine: Engine) -> None:
    state = {"order": {"count": 3}}
    asked = {
        "late": {"type": "noul", "instructions": "It is late.", "criteria": "after noon"},
        "which": {"type": "choice", "instructions": "Which?", "criteria": {"red": "as wine", "blue": None}},
        "much": {"type": "score", "instructions": "How?", "criteria": ["low", "high"]},
    }
    status, found = post(gateway, "/v1/systemone", state=state, questions=asked, joint=False, cache_salt="s", images=[])
    assert status == 200, found
    same = [
        {"type": "predicate", "instructions": "It is late.\nafter noon"},
        {
            "type": "choice",
            "instructions": "Which?",
            "choices": [{"value": "red", "description": "as wine"}, {"value": "blue"}],
        },
        {"type": "score", "instructions": "How?", "levels": [{"label": "low"}, {"label": "high"}]},
    ]
    predicate, choice, score = decide(engine, json.dumps(state), same)
    answers = found["answers"]
    assert answers["late"]["probability"] == predicate["probability"]
    assert answers["late"]["diagnostics"].keys() >= {"label_mass", "argmax_is_label"}
    assert answers["which"]["probabilities"] == {p["value"]: p["probability"] for p in choice["probabilities"]}
    assert answers["much"]["score"] == score["score"]
    for changes in (
        {"images": ["a"]},
        {"questions": {"a": {"type": "choice", "instructions": "b"}}},
        {"questions": {}},
    ):
        status, found = post(gateway, "/v1/systemone", **({"state": "a", "questions": asked} | changes))
        assert status == 400, found


@pytest.mark.parametrize(
    ("question", "field"),
    [
        ({"type": "choice", "criteria": ["red"]}, "questions.which one.criteria: 1 options"),
        ({"type": "choice", "criteria": ["red", "red"]}, "questions.which one.criteria: 'red' cannot be used"),
        ({"type": "score", "criteria": {"": None, "high": "b"}}, "questions.which one.criteria: '' cannot be used"),
        ({"type": "noul", "instructions": " "}, "questions.which one.instructions: '' cannot be used"),
    ],
)
def test_system_one_names_questions_by_their_ids(gateway: Running, question: dict[str, Any], field: str) -> None:
    asked = {"first": {"type": "noul", "instructions": "a"}, "which one": {"instructions": "Which?", **question}}
    status, found = post(gateway, "/v1/systemone", state="a", questions=asked)
    assert status == 400
    assert found["error"]["message"].startswith(field)
    assert found["error"]["param"] == field.split(":")[0]


def infer_input(name: str, value: Any, kind: str) -> triton.InferInput:
    made = triton.InferInput(name, [1, 1], kind)
    made.set_data_from_numpy(np.array([[value]], dtype={"BYTES": np.object_, "INT32": np.int32}[kind]))
    return made


def test_nvidias_client_asks_a_model_of_its_own(server: Server, engine: Engine) -> None:
    with triton.InferenceServerClient(server.grpc_url) as connection:
        text = [infer_input("text_input", TEXT.encode(), "BYTES")]
        found = connection.infer(DECIDE_MODEL, [*text, infer_input("questions", json.dumps(ALL).encode(), "BYTES")])
        assert json.loads(found.as_numpy("answers").item()) == decide(engine, TEXT, ALL)
        assert found.as_numpy("finish_reason").item() == b"stop"
        with pytest.raises(InferenceServerException, match="^.*questions: "):
            connection.infer(DECIDE_MODEL, text)
    body = {"text_input": TEXT, "questions": json.dumps(ALL), "samples": 2}
    asked = urllib.request.Request(f"{server.http_url}/v2/models/{DECIDE_MODEL}/generate", json.dumps(body).encode())
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert json.loads(json.loads(answer.read())["answers"]) == decide(engine, TEXT, ALL, samples=2)


def test_our_client_and_what_the_model_refuses(client: BlockingClient, engine: Engine) -> None:
    found = client.decide(TEXT, ALL, samples=2)
    assert found.answers == decide(engine, TEXT, ALL, samples=2)
    assert found.num_output_tokens == 3
    for wrong, field in (
        ({"max_tokens": 3}, "max_tokens"),
        ({"samples": 99}, "samples"),
        ({"order": "x"}, "order"),
        ({"questions": [{"type": "x"}]}, r"questions\[0\].type"),
        ({"messages": [{"role": "user", "content": "a"}]}, "prompt"),
    ):
        with pytest.raises(Refused, match=f"^{field}: "):
            client.decide(TEXT, **({"questions": ALL} | wrong))
    with pytest.raises(Refused, match=r"^samples: .*only with questions"):
        list(client.generate(TEXT, samples=2))
    with pytest.raises(TimedOut):
        client.decide(TEXT, [{**PREDICATE, "name": str(i)} for i in range(400)], samples=16, deadline=0.05)
