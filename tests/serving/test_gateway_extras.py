"""What OpenAI's API does not know: headers that say what was done, and what a request's canvases took."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serving.gateway import Running, request
from triton_repo.client.blocking import BlockingClient

pytestmark = pytest.mark.server

MESSAGES: Any = [{"role": "user", "content": "blue lamp"}]
CHAT: dict[str, Any] = {"model": "diffgemma", "messages": MESSAGES}
FEW = {"max_denoising_steps": 3}


@pytest.fixture
def api(gateway: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as connected:
        yield connected


def test_a_limit_beyond_the_context_becomes_what_is_left(api: openai.OpenAI, client: BlockingClient) -> None:
    more = {**FEW, "ignore_eos": True}
    (whole,) = client.generate(messages=MESSAGES, stream=False, **more)
    assert whole.max_tokens == whole.num_output_tokens
    for stream in (False, True):
        found = api.chat.completions.with_raw_response.create(**CHAT, max_tokens=10**6, extra_body=more, stream=stream)
        assert int(found.headers["x-diffgemma-max-tokens"]) == whole.num_output_tokens
        answer: Any = found.parse()
        text = (
            "".join(c.choices[0].delta.content or "" for c in answer) if stream else answer.choices[0].message.content
        )
        assert text == whole.text
    fits = api.chat.completions.with_raw_response.create(**CHAT, max_tokens=5, extra_body=FEW)
    assert "x-diffgemma-max-tokens" not in fits.headers
    # Of several prompts one limit cannot say which it was, and a gap's length is its place.
    for body in ({"prompt": ["red", "blue"]}, {"prompt": "red", "suffix": "blue"}):
        with pytest.raises(openai.BadRequestError) as refused:
            api.completions.create(model="diffgemma", max_tokens=10**6, extra_body=body, prompt=body["prompt"])
        assert refused.value.param == "max_tokens"


def test_a_seed_that_is_drawn_is_said(api: openai.OpenAI) -> None:
    body = {**CHAT, "max_tokens": 24, "extra_body": {**FEW, "ignore_eos": True}}
    drawn = [api.chat.completions.with_raw_response.create(**body, seed=-1) for _ in range(2)]
    seeds = [int(answer.headers["x-diffgemma-seed"]) for answer in drawn]
    assert seeds[0] != seeds[1]
    again = api.chat.completions.with_raw_response.create(**body, seed=seeds[0])
    assert "x-diffgemma-seed" not in again.headers
    assert again.parse().choices == drawn[0].parse().choices


def test_usage_tells_what_each_canvas_took(api: openai.OpenAI, client: BlockingClient) -> None:
    more = {**FEW, "ignore_eos": True, "seed": 4, "max_tokens": 40}
    drafts = [r for r in client.generate(messages=MESSAGES, drafts=True, **more) if r.provisional]
    canvases: list[list[float]] = [[], [], []]
    for draft in drafts:
        canvases[draft.canvas_index].append(draft.entropy or 0.0)
    extra = {**FEW, "ignore_eos": True}
    whole = api.chat.completions.create(**CHAT, max_tokens=40, seed=4, extra_body=extra)
    *_, last = api.chat.completions.create(
        **CHAT, max_tokens=40, seed=4, extra_body=extra, stream=True, stream_options={"include_usage": True}
    )
    for usage in (whole.usage, last.usage):
        assert usage is not None
        assert usage.completion_tokens_details is not None
        assert usage.completion_tokens_details.reasoning_tokens == 0
        assert usage.completion_tokens_details.text_tokens == usage.completion_tokens == 40
        (choice,) = usage.model_extra["diffgemma"]["choices"]  # type: ignore[index]
        assert (choice["index"], len(choice["canvases"])) == (0, 3)
        for found, entropies in zip(choice["canvases"], canvases, strict=True):
            assert found == {
                "denoising_steps": len(entropies),
                "first_entropy": pytest.approx(entropies[0], rel=1e-6),
                "peak_entropy": pytest.approx(max(entropies), rel=1e-6),
                "summed_entropy": pytest.approx(sum(entropies), rel=1e-6),
                "last_entropy": pytest.approx(entropies[-1], rel=1e-6),
            }
    several = api.chat.completions.create(**CHAT, max_tokens=8, n=2, extra_body=extra)
    assert several.usage is not None
    choices = several.usage.model_extra["diffgemma"]["choices"]  # type: ignore[index]
    assert [(c["index"], len(c["canvases"])) for c in choices] == [(0, 1), (1, 1)]


def test_a_long_user_takes_turns_as_a_short_one(gateway: Running) -> None:
    body = {**CHAT, "max_tokens": 4, **FEW, "user": "ü" * 5000}
    status, headers, _ = request(f"{gateway.url}/v1/chat/completions", json.dumps(body).encode())
    assert (status, "x-diffgemma-ignored" in headers) == (200, False)
