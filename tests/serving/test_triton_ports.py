"""Triton's own protocols: what of them holds here, and what tritonserver itself says."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2_grpc

from tests.cases.triton.target import Target, int32
from tests.serving.endless import ENDLESS
from triton_repo.client.blocking import BlockingClient
from triton_repo.launcher.server import Server
from triton_repo.tensors import UNARY_MODEL

pytestmark = pytest.mark.server
PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()


def post(server: Server, **changes: Any) -> tuple[int, Any]:
    body = {"text_input": "red", "max_tokens": 4, "max_denoising_steps": 2} | changes
    request = urllib.request.Request(f"{server.http_url}/v2/models/diffgemma/generate", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": "5"},
        {"max_tokens": 4.5},
        {"max_tokens": True},
        {"max_tokens": None},
        {"max_tokens": 2**63},
        {"seed": -1},
        {"stream": "true"},
        {"temperature": "x"},
        {"text_input": 5},
        {"stop_words": [1]},
        {"input_ids": [1, "a"], "text_input": "red"},
    ],
    ids=str,
)
def test_an_input_of_another_type_of_json_is_tritonservers_500(server: Server, changes: dict[str, Any]) -> None:
    """Before any code of ours: docs/serving.md says so. Where this fails, another tritonserver does better."""
    status, said = post(server, **changes)
    assert (status, "Unable to parse" in said, "attempt to access JSON" in said) == (500, True, True)
    assert "is a 500 of tritonserver's own, `Unable to parse`" in PAGE


def test_an_integer_beyond_32_bits_is_cut_by_tritonserver(server: Server) -> None:
    status, answer = post(server, max_tokens=2**32 + 8)
    assert (status, answer["max_tokens"], answer["num_output_tokens"]) == (200, 8, 8)
    assert "4294967304` is 8" in PAGE


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"timeout": "x"}, "timeout: 'x' cannot be used; allowed: microseconds from arrival"),
        ({"timeout": -1}, "timeout: -1 cannot be used; allowed: microseconds from arrival"),
        ({"timeout": 0.5}, "timeout: 0.5 cannot be used; allowed: microseconds from arrival"),
        ({"timeout": True}, "timeout: True cannot be used; allowed: microseconds from arrival"),
        ({"sequence_id": 7}, "sequence_id: 7 cannot be used; allowed: only these inputs: "),
        ({"sequence_start": True}, "sequence_start: True cannot be used; allowed: only these inputs: "),
    ],
)
def test_parameters_are_honoured_or_refused_by_name(server: Server, changes: dict[str, Any], text: str) -> None:
    status, said = post(server, **changes)
    assert (status, said[: len(text)]) == (400, text)


def test_timeout_is_a_deadline_in_microseconds(server: Server) -> None:
    long = {"max_tokens": 200, "ignore_eos": True, "max_denoising_steps": 1024}
    for parameters in ({"timeout": 1}, {"timeout": 300_000}, {"timeout": 300_000, "deadline": 60.0}):
        status, answer = post(server, **long, **parameters)
        assert (status, answer["finish_reason"]) == (200, "deadline")
    status, answer = post(server, **long, timeout=60_000_000, deadline=0.3)
    assert (status, answer["finish_reason"]) == (200, "deadline")


def test_timeout_holds_by_grpc_and_through_other_models(server: Server) -> None:
    values = {"max_tokens": 200, "max_denoising_steps": 1024}
    inputs = [triton.InferInput(name, [1, 1], "INT32") for name in values]
    for tensor, value in zip(inputs, values.values(), strict=True):
        tensor.set_data_from_numpy(np.array([[value]], dtype=np.int32))
    prompt = triton.InferInput("text_input", [1, 1], "BYTES")
    prompt.set_data_from_numpy(np.array([[b"red"]], dtype=object))
    with triton.InferenceServerClient(server.grpc_url) as client:
        answer = client.infer(UNARY_MODEL, [prompt, *inputs], timeout=300_000)
    assert answer.as_numpy("finish_reason").item() == b"deadline"


def test_priority_as_a_parameter_is_told_to_nobody(server: Server) -> None:
    """tritonserver takes it for its own queue, of which there is none: docs/serving.md says so."""
    target = Target(server)
    request = target.request()
    request.parameters["priority"].int64_param = 3
    assert target.ask(request) == "OK"
    target.close()
    assert "The parameter `priority`" in PAGE


def test_clients_may_ping_while_their_request_waits(server: Server) -> None:
    """As often as gRPC's library lets them."""
    options = [
        ("grpc.keepalive_time_ms", 10),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    target = Target(server)
    given = {
        "max_tokens": ("INT32", [1, 1], int32(200)),
        "max_denoising_steps": ("INT32", [1, 1], int32(1024)),
        "deadline": ("FP32", [1, 1], np.float32(4).tobytes()),
    }
    with BlockingClient(server.grpc_url) as other, grpc.insecure_channel(server.grpc_url, options=options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        busy = other.generate("red", **ENDLESS)  # one slot less: what is measured here is a connection
        next(busy)
        (answer,) = stub.ModelStreamInfer(iter([target.request(**given)]), timeout=60)
        time.sleep(1)  # no call at all
        (again,) = stub.ModelStreamInfer(iter([target.request()]), timeout=60)
        busy.close()
    target.close()
    assert (answer.error_message, again.error_message) == ("", "")
    assert b"deadline" in b"".join(answer.infer_response.raw_output_contents)
