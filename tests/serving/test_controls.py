"""What a request can ask beside the sampler's settings arrives at the engine as it would from Python."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.serving.endless import ENDLESS
from triton_repo.client.blocking import BlockingClient
from triton_repo.client.client import GenerationError
from triton_repo.launcher.scrape import running_requests
from triton_repo.launcher.server import Server
from trtllm_build import Engine

pytestmark = pytest.mark.server

PROMPT = "red green chair"


def served(connected: BlockingClient, /, **inputs: Any) -> Any:
    (response,) = connected.generate(PROMPT, stream=False, seed=3, max_denoising_steps=3, **inputs)
    return response


@pytest.mark.parametrize(
    ("wire", "local"),
    [
        ({"min_tokens": 20, "max_tokens": 24}, {"min_tokens": 20, "max_tokens": 24}),
        ({"stop_token_ids": list(range(30, 60)), "max_tokens": 24}, {"stop_token_ids": tuple(range(30, 60))}),
        ({"canvas_length": 5, "max_tokens": 12, "ignore_eos": True}, {"canvas_length": 5, "max_tokens": 12}),
        ({"canvas_length": 0, "max_tokens": 7, "ignore_eos": True}, {"canvas_length": "fit", "max_tokens": 7}),
        ({"priority": -1, "deadline": 60.0, "max_tokens": 9, "ignore_eos": True}, {"max_tokens": 9}),
        ({"client": "a", "pad_id": 7, "max_tokens": 9, "ignore_eos": True}, {"max_tokens": 9}),
        ({"temperature": 0.0, "entropy_bound": 50.0}, {"temperature": 0, "entropy_bound": 50.0}),
        (
            {"temperature": 1.5, "top_p": 0.9, "entropy_bound": 50.0},
            {"temperature": 1.5, "top_p": 0.9, "entropy_bound": 50.0},
        ),
        ({"min_length": 20}, {"min_tokens": 20}),
        ({"end_id": -1}, {"ignore_eos": True}),
        ({"end_id": 30}, {"ignore_eos": True, "stop_token_ids": (30,)}),
    ],
    ids=lambda inputs: "-".join(inputs),
)
def test_controls_mean_what_they_mean_in_python(
    client: BlockingClient, engine: Engine, wire: dict[str, Any], local: dict[str, Any]
) -> None:
    more = {"max_tokens": 24, "ignore_eos": wire.get("ignore_eos", False)} | local
    (expected,) = engine.generate(PROMPT, seed=3, max_denoising_steps=3, **more)
    found = served(client, **{"max_tokens": 24, **wire})
    assert (found.token_ids, found.finish_reason) == (expected.token_ids, expected.finish_reason)


def test_a_stop_word_cuts_the_answer_and_does_not_show(client: BlockingClient) -> None:
    whole = served(client, max_tokens=40, ignore_eos=True).text
    word = next(w for w in ("green", "red", "blue", "chair", "table", "lamp", "a", "e") if w in whole[1:])
    found = served(client, max_tokens=40, ignore_eos=True, stop_words=[word, ""])
    assert found.text == whole[: whole.index(word)]
    assert found.finish_reason == "stop"


def test_a_suffix_is_led_to_and_not_repeated(client: BlockingClient, engine: Engine) -> None:
    assert engine.tokenizer is not None
    after = engine.tokenizer.encode(" blue lamp")
    pinned = {12 + i: token for i, token in enumerate(after)}
    (whole,) = engine.generate(PROMPT, 12 + len(after), 3, max_denoising_steps=3, pinned=pinned)
    found = served(client, max_tokens=12, suffix=" blue lamp")
    assert whole.token_ids[12:] == tuple(after)
    assert found.token_ids == whole.token_ids[:12]
    assert found.text == engine.tokenizer.decode(found.token_ids)
    assert (found.num_output_tokens, found.finish_reason) == (12, "length")
    with pytest.raises(GenerationError, match="max_tokens: None cannot be used; allowed: with suffix the number"):
        served(client, suffix="blue")
    with pytest.raises(GenerationError, match="stream: True cannot be used; allowed: false with suffix"):
        list(client.generate(PROMPT, max_tokens=3, suffix="blue"))


def test_a_late_request_is_ended_with_what_it_has(client: BlockingClient) -> None:
    responses = list(client.generate(PROMPT, max_tokens=200, ignore_eos=True, deadline=0.05))
    assert responses[-1].finish_reason == "deadline"
    assert responses[-1].num_output_tokens < 200


def test_drafts_come_every_so_many_steps(client: BlockingClient) -> None:
    responses = list(client.generate(PROMPT, max_tokens=16, ignore_eos=True, max_denoising_steps=6, draft_every=2))
    assert [r.denoising_steps for r in responses if r.provisional] == [2, 4, 6][: len(responses) - 1]
    with pytest.raises(GenerationError, match="draft_every: 2 cannot be used; allowed: 0 without stream"):
        served(client, max_tokens=4, draft_every=2)


def test_a_full_queue_says_its_length(narrow_server: Server) -> None:
    with BlockingClient(narrow_server.grpc_url) as client:
        running = client.generate(PROMPT, **ENDLESS)
        next(running)
        waiting = threading.Thread(target=lambda: list(client.generate(PROMPT, max_tokens=2)))
        waiting.start()
        while (running_requests(narrow_server.metrics_url) or 0) < 2:
            time.sleep(0.05)
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(narrow_server, {"text_input": PROMPT, "max_tokens": 1})
        # UNAVAILABLE inside; of a decoupled model tritonserver 2.51 tells HTTP clients 400 whatever it was
        assert refused.value.code in (400, 503)
        assert json.loads(refused.value.read())["error"].endswith("1 requests wait already; the limit is 1")
        running.close()
        waiting.join()


def post(server: Server, body: dict[str, Any]) -> str:
    address = f"{server.http_url}/v2/models/diffgemma/generate"
    with urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode()), timeout=60) as answer:
        return str(answer.read().decode())
