"""Malformed gRPC: any tensors, of any type and shape, to any of the models. An error, never a crash, never a hang.

``GRPC_FUZZ_EXAMPLES`` is the number of requests to each model; 10,000 take a long run.
"""

from __future__ import annotations

import re
import struct
import time
import urllib.request
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.serving.fuzzing import fuzzing
from triton_repo.launcher.server import Server
from triton_repo.tensors import ALL_INPUTS, MODEL, TOKEN_INPUTS, TOKEN_MODEL, UNARY_MODEL

pytestmark = [pytest.mark.server, pytest.mark.slow]

SETTINGS = fuzzing("GRPC_FUZZ_EXAMPLES", 60)
# What a client may be told. tritonserver itself says INTERNAL of tensors whose bytes do not fit their shape.
TOLD = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE", "UNIMPLEMENTED", "INTERNAL", "UNKNOWN"}
TYPES = {"BOOL": 1, "INT32": 4, "INT64": 8, "UINT64": 8, "FP32": 4, "FP16": 2, "BYTES": 0}
Drawn = tuple[str, str, list[int], bytes]
# However random the rest, none of them denoises for long.
SHORT = {"max_tokens": 4, "request_output_len": 4, "max_denoising_steps": 2}

names = st.one_of(st.sampled_from([*ALL_INPUTS, *TOKEN_INPUTS]), st.text(max_size=20))
shapes = st.one_of(
    st.sampled_from([[1, 1], [1, 3], [1], [], [2, 2], [1, 0]]),
    st.lists(st.integers(-3, 5), max_size=4),
    st.just([1, 2**40]),
)
right_texts = st.one_of(st.text(max_size=30).map(str.encode), st.binary(max_size=30))


@st.composite
def tensors(draw: Any) -> Drawn:
    """Name, type, shape and bytes; about half of them well-formed."""
    name = draw(names)
    if draw(st.booleans()) and name in ALL_INPUTS:
        kind = ALL_INPUTS[name].dtype.replace("STRING", "BYTES")
        count = 1 if ALL_INPUTS[name].dims == (1,) else draw(st.integers(0, 4))
        if kind == "BYTES":
            texts = draw(st.lists(right_texts, min_size=count, max_size=count))
            return name, kind, [1, count], b"".join(struct.pack("<I", len(t)) + t for t in texts)
        return name, kind, [1, count], draw(st.binary(min_size=count * TYPES[kind], max_size=count * TYPES[kind]))
    kind = draw(st.sampled_from([*TYPES, "", "TYPE_INT32", "COMPLEX"]))
    return name, kind, draw(shapes), draw(st.binary(max_size=40))


requests = st.lists(tensors(), max_size=3, unique_by=lambda t: t[0])
parameters = st.dictionaries(
    st.one_of(st.sampled_from(["id", "priority", "diffgemma_cancel"]), st.text(max_size=9)),
    st.one_of(st.booleans(), st.integers(-(2**31), 2**31), st.text(max_size=9)),
    max_size=2,
)


def message(model: str, drawn: list[Drawn], extra: dict[str, Any], prompt: bool, cut: bool) -> Any:
    """A request of ``drawn``; with ``prompt`` it would be answered without them; ``cut``: bytes are missing."""
    request = service_pb2.ModelInferRequest(model_name=model, id="fuzz")
    short = {n: v for n, v in SHORT.items() if n in (TOKEN_INPUTS if model == TOKEN_MODEL else ALL_INPUTS)}
    fixed = [(name, "INT32", [1, 1], struct.pack("<i", value)) for name, value in short.items()]
    if prompt and model == TOKEN_MODEL:
        fixed.append(("input_ids", "INT32", [1, 2], struct.pack("<ii", 7, 8)))
    elif prompt:
        fixed.append(("text_input", "BYTES", [1, 1], struct.pack("<I", 3) + b"red"))
    names_of_fixed = {name for name, *_ in fixed}
    for name, kind, shape, content in [t for t in drawn if t[0] not in names_of_fixed] + fixed:
        request.inputs.add(name=name, datatype=kind, shape=shape)
        request.raw_input_contents.append(content)
    if cut:  # one content too few
        del request.raw_input_contents[-1]
    for name, value in extra.items():
        field = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], field, value)
    return request


def own_faults(server: Server) -> float:
    """Requests that ended by a fault of the service, since it started."""
    time.sleep(0.5)  # counters are a little late
    with urllib.request.urlopen(server.metrics_url, timeout=30) as answer:
        (count,) = re.findall(r'^diffgemma_requests_total\{.*outcome="error".*\} (\S+)$', answer.read().decode(), re.M)
    return float(count)


@pytest.mark.parametrize("model", [MODEL, UNARY_MODEL, TOKEN_MODEL])
def test_malformed_tensors_get_an_answer(server: Server, model: str) -> None:
    told: dict[str, int] = {}

    @SETTINGS
    @given(requests, parameters, st.sampled_from([True, True, False]), st.sampled_from([False] * 9 + [True]))
    def ask(drawn: list[Drawn], extra: dict[str, Any], prompt: bool, cut: bool) -> None:
        request = message(model, drawn, extra, prompt, cut)
        try:
            if model == UNARY_MODEL:
                stub.ModelInfer(request, timeout=60)
                status = "OK"
            else:
                answers = list(stub.ModelStreamInfer(iter([request]), timeout=60))
                status = "UNKNOWN" if any(answer.error_message for answer in answers) else "OK"
        except grpc.RpcError as error:
            status = error.code().name
        told[status] = told.get(status, 0) + 1
        assert status in TOLD, request
        server.check()

    before = own_faults(server)
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        ask()
    server.probe()
    assert own_faults(server) == before  # INTERNAL is tritonserver's word
    print(f"{model}: {sum(told.values())} requests, by status {told}")
