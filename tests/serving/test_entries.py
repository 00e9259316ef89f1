"""The other entries: plain ModelInfer with one response, and token ids under TensorRT-LLM's names."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from triton_repo.client.blocking import BlockingClient
from triton_repo.launcher.server import Server
from triton_repo.tensors import TOKEN_MODEL, UNARY_MODEL
from trtllm_build import Engine

pytestmark = pytest.mark.server

PROMPT = "red green chair"


@pytest.fixture
def connection(server: Server) -> Iterator[triton.InferenceServerClient]:
    """NVIDIA's own client."""
    with triton.InferenceServerClient(server.grpc_url) as connected:
        yield connected


def inputs(**values: Any) -> list[triton.InferInput]:
    made = []
    for name, value in values.items():
        array = np.atleast_2d(np.array(value))
        array = array.astype({"i": np.int32, "f": np.float32, "b": np.bool_}.get(array.dtype.kind, np.object_))
        made.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array)
    return made


def test_plain_infer_answers_as_the_stream_does(
    connection: triton.InferenceServerClient, client: BlockingClient
) -> None:
    found = connection.infer(UNARY_MODEL, inputs(text_input=PROMPT, max_tokens=20, ignore_eos=True))
    blocks = list(client.generate(PROMPT, max_tokens=20, ignore_eos=True))
    assert found.as_numpy("text_output").item().decode() == "".join(block.text for block in blocks)
    assert found.as_numpy("output_ids").reshape(-1).tolist() == [t for block in blocks for t in block.token_ids]
    assert found.as_numpy("finish_reason").item() == b"length"


def test_plain_infer_over_http(server: Server) -> None:
    body = {"text_input": PROMPT, "max_tokens": 4, "ignore_eos": True}
    request = urllib.request.Request(f"{server.http_url}/v2/models/{UNARY_MODEL}/generate", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.loads(answer.read())["num_output_tokens"] == 4


def test_many_plain_requests_run_side_by_side(connection: triton.InferenceServerClient, engine: Engine) -> None:
    def one(seed: int) -> list[int]:
        asked = [*inputs(text_input=PROMPT, max_tokens=24, ignore_eos=True), seed_input(seed)]
        return list(connection.infer(UNARY_MODEL, asked).as_numpy("output_ids").reshape(-1).tolist())

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(one, range(12)))
    assert engine.tokenizer is not None
    prompt = engine.tokenizer.encode(PROMPT)
    assert found == [list(engine.generate([prompt], 24, seed, ignore_eos=True)[0].token_ids) for seed in range(12)]


def seed_input(seed: int) -> triton.InferInput:
    made = triton.InferInput("seed", [1, 1], "UINT64")
    made.set_data_from_numpy(np.array([[seed]], dtype=np.uint64))
    return made


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"text_input": PROMPT, "stream": True}, "stream: True cannot be used; allowed: false: this model sends one"),
        ({"text_input": PROMPT, "max_tokens": 0}, "max_tokens: 0 cannot be used; allowed: an integer >= 1"),
        ({"max_tokens": 1}, "prompt: 'none of them' cannot be used"),
    ],
)
def test_plain_infer_refuses_with_a_status(
    connection: triton.InferenceServerClient, values: dict[str, Any], text: str
) -> None:
    with pytest.raises(InferenceServerException) as error:
        connection.infer(UNARY_MODEL, inputs(**values))
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert error.value.message().startswith(text)


def stream(connection: triton.InferenceServerClient, **values: Any) -> list[Any]:
    """All responses of the token-level model: results, or the error that ended them."""
    responses: list[Any] = []
    done = threading.Event()

    def receive(result: Any, error: Any) -> None:
        if error is not None:
            responses.append(error)
            done.set()
            return
        last = result.get_response().parameters["triton_final_response"].bool_param
        responses.append(result)
        if last:
            done.set()

    connection.start_stream(receive)
    connection.async_stream_infer(TOKEN_MODEL, inputs(**values), enable_empty_final_response=True)
    assert done.wait(60)
    connection.stop_stream()
    return responses


def test_token_ids_in_and_out(connection: triton.InferenceServerClient, engine: Engine) -> None:
    assert engine.tokenizer is not None
    prompt = engine.tokenizer.encode(PROMPT)
    (expected,) = engine.generate([prompt], 20, 0, ignore_eos=True)
    for streaming in (False, True):
        asked = {"input_ids": [*prompt, 9, 9], "input_lengths": len(prompt), "request_output_len": 20}
        neutral = {"beam_width": 1, "temperature": 1.0, "runtime_top_k": 0, "len_penalty": 1.0, "end_id": -1}
        found = [r for r in stream(connection, **asked, **neutral, streaming=streaming) if r.get_output("output_ids")]
        ids = [token for r in found for token in r.as_numpy("output_ids").reshape(-1).tolist()]
        assert ids == list(expected.token_ids)
        assert (len(found) > 1) == streaming
        assert all(r.as_numpy("output_ids").shape == (1, 1, r.as_numpy("sequence_length").item()) for r in found)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"request_output_len": 0}, "request_output_len: 0 cannot be used; allowed: an integer >= 1"),
        ({"runtime_top_k": 4}, "runtime_top_k: 4 cannot be used; allowed: 0"),
        ({"input_lengths": 4}, "input_lengths: 4 cannot be used; allowed: 1 to 3, the size of input_ids"),
        ({"input_ids": [3, 300]}, "input_ids: 300 cannot be used; allowed: token ids from 0 to 299"),
    ],
)
def test_token_level_refusals_use_its_names(
    connection: triton.InferenceServerClient, changes: dict[str, Any], text: str
) -> None:
    (error,) = stream(connection, **{"input_ids": [3, 4, 5], "request_output_len": 4, **changes})
    assert str(error.message()).startswith(text)


@pytest.mark.parametrize("model", [UNARY_MODEL, TOKEN_MODEL])
def test_a_client_that_goes_ends_its_generation(server: Server, logged: Callable[[str], bool], model: str) -> None:
    """240 canvases of one token, 48 steps each: far longer than the test waits."""
    name = f"gone-{model}"
    long = {"request_output_len": 240} if model == TOKEN_MODEL else {"max_tokens": 240, "canvas_length": 1}
    asked = inputs(input_ids=[3, 4, 5], **long, confidence_threshold=0.0)
    with triton.InferenceServerClient(server.grpc_url) as leaving:
        if model == UNARY_MODEL:
            future = leaving.async_infer(model, asked, callback=lambda result, error: None, request_id=name)
            time.sleep(0.3)
            future.cancel()
        else:
            leaving.start_stream(lambda result, error: None)
            leaving.async_stream_infer(model, asked, request_id=name)
            time.sleep(0.3)
            leaving.stop_stream(cancel_requests=True)
        assert logged(f'"request_id": "{name}", "outcome": "cancelled"')
