"""Triton's generate endpoints: what needs no client library."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from triton_repo.client.blocking import BlockingClient
from triton_repo.launcher.server import Server
from triton_repo.tensors import ALL_INPUTS, ALL_OUTPUTS

pytestmark = pytest.mark.server

BODY = {"text_input": "green table", "max_tokens": 20, "ignore_eos": True, "seed": 4, "max_denoising_steps": 4}


def post(server: Server, endpoint: str, body: dict[str, Any]) -> str:
    address = f"{server.http_url}/v2/models/diffgemma/{endpoint}"
    with urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode()), timeout=60) as answer:
        return str(answer.read().decode())


def test_generate_stream_sends_an_event_a_block(server: Server, client: BlockingClient) -> None:
    lines = post(server, "generate_stream", {**BODY, "stream": True}).splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    streamed = list(client.generate("green table", max_tokens=20, ignore_eos=True, seed=4, max_denoising_steps=4))
    assert [(e["text_output"], tuple(e["output_ids"]), e["finish_reason"]) for e in events] == [
        (r.text, r.token_ids, r.finish_reason or "") for r in streamed
    ]


def test_generate_sends_everything_at_once(server: Server, client: BlockingClient) -> None:
    found = json.loads(post(server, "generate", BODY))
    blocks = list(client.generate("green table", max_tokens=20, ignore_eos=True, seed=4, max_denoising_steps=4))
    assert found["text_output"] == "".join(block.text for block in blocks)
    assert (found["finish_reason"], found["num_output_tokens"], found["provisional"]) == ("length", 20, False)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"max_new_tokens": 5}, "max_new_tokens: 5 cannot be used; allowed: only these inputs: text_input, "),
        (
            {"temperature": 2.5},
            "temperature: 2.5 cannot be used; allowed: a number from 0 to 2; fix: pass temperature=1",
        ),
        ({"max_tokens": 0}, "max_tokens: 0 cannot be used; allowed: an integer >= 1; fix: pass max_tokens=1"),
    ],
)
def test_a_refusal_is_a_400_with_its_reason(server: Server, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        post(server, "generate", {**BODY, **changes})
    assert error.value.code == 400
    assert json.loads(error.value.read())["error"].startswith(text)


def test_triton_serves_the_tensors_that_are_described(server: Server) -> None:
    with urllib.request.urlopen(f"{server.http_url}/v2/models/diffgemma/config", timeout=60) as answer:
        config = json.loads(answer.read())
    assert [tensor["name"] for tensor in config["input"]] == list(ALL_INPUTS)
    assert [tensor["name"] for tensor in config["output"]] == list(ALL_OUTPUTS)
    assert config["model_transaction_policy"] == {"decoupled": True}
