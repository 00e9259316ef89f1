"""The gateway, asked by the official client of OpenAI's API, answers what the gRPC client answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.serving.gateway import Running
from triton_repo.client.blocking import BlockingClient

pytestmark = pytest.mark.server

PROMPT = "red green chair"
MESSAGES: Any = [{"role": "system", "content": "größe"}, {"role": "user", "content": "blue lamp"}]
MORE = {"ignore_eos": True, "max_denoising_steps": 6}
ENDLESS: dict[str, Any] = {
    "max_tokens": 200,
    "extra_body": {"ignore_eos": True, "max_denoising_steps": 1024, "draft_every": 1},
}


@pytest.fixture
def api(gateway: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as connected:
        yield connected


def chat(api: openai.OpenAI, **more: Any) -> Any:
    return api.chat.completions.create(model="diffgemma", messages=MESSAGES, **more)


def complete(api: openai.OpenAI, **more: Any) -> Any:
    return api.completions.create(**{"model": "diffgemma", "prompt": PROMPT, **more})


def test_a_chat_is_what_grpc_answers(api: openai.OpenAI, client: BlockingClient) -> None:
    (expected,) = client.generate(messages=MESSAGES, max_tokens=24, seed=3, stream=False, **MORE)
    found = chat(api, max_tokens=24, seed=3, extra_body=MORE)
    (choice,) = found.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert (choice.finish_reason, choice.index, found.model) == ("length", 0, "diffgemma")
    usage = (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens)
    assert usage == (expected.num_input_tokens, 24, expected.num_input_tokens + 24)
    newer = chat(api, max_completion_tokens=24, seed=3, extra_body=MORE, temperature=1, top_p=1, n=1)
    assert newer.choices == found.choices


def test_temperature_and_top_p_are_what_grpc_answers(api: openai.OpenAI, client: BlockingClient) -> None:
    more = {**MORE, "entropy_bound": 50.0}
    texts = set()
    for temperature, top_p in ((0, 1), (0.5, 1), (1.5, 1), (1, 0.5)):
        sampling = {"temperature": temperature, "top_p": top_p}
        (expected,) = client.generate(messages=MESSAGES, max_tokens=24, seed=3, stream=False, **more, **sampling)
        found = chat(api, max_tokens=24, seed=3, extra_body=more, temperature=temperature, top_p=top_p)
        assert found.choices[0].message.content == expected.text
        texts.add(expected.text)
    assert len(texts) > 1


def test_parts_developers_and_history(api: openai.OpenAI) -> None:
    said = chat(api, max_tokens=8, extra_body=MORE)
    parts = [{"type": "text", "text": "blue "}, {"type": "text", "text": "lamp"}]
    same: Any = [{"role": "developer", "content": "größe"}, {"role": "user", "content": parts}]
    again = api.chat.completions.create(model="diffgemma", messages=same, max_tokens=8, extra_body=MORE)
    assert again.choices == said.choices
    history: Any = [*MESSAGES, said.choices[0].message, {"role": "user", "content": "and?"}]
    went_on = api.chat.completions.create(model="diffgemma", messages=history, max_tokens=8)
    assert went_on.usage.prompt_tokens > said.usage.prompt_tokens


def test_a_stream_is_the_same_in_blocks(api: openai.OpenAI, client: BlockingClient) -> None:
    blocks = list(client.generate(messages=MESSAGES, max_tokens=40, seed=1, **MORE))
    plain = list(chat(api, max_tokens=40, seed=1, stream=True, extra_body=MORE))
    options: Any = {"include_usage": True}
    chunks = list(
        chat(api, max_tokens=40, seed=1, stream=True, stream_options=options, extra_body={**MORE, "draft_every": 2})
    )
    drafts = [chunk.model_extra for chunk in chunks if chunk.model_extra and chunk.model_extra.get("provisional")]
    last = chunks[-1]
    assert (last.choices, last.usage.completion_tokens, last.usage.prompt_tokens) == (
        [],
        40,
        blocks[0].num_input_tokens,
    )
    assert len(drafts) >= 3
    assert drafts[0]["diffgemma"].keys() == {"index", "text", "canvas_index", "denoising_steps", "entropy"}
    assert drafts[0]["diffgemma"]["denoising_steps"] == 2
    for found in (plain, [chunk for chunk in chunks if chunk.choices]):
        assert found[0].choices[0].delta.role == "assistant"
        assert [chunk.choices[0].delta.content for chunk in found[1:-1]] == [block.text for block in blocks]
        assert [chunk.choices[0].finish_reason for chunk in found[-2:]] == [None, "length"]


def test_the_stream_helper_of_the_official_client_passes_over_drafts(api: openai.OpenAI) -> None:
    text = chat(api, max_tokens=40, seed=2, extra_body=MORE).choices[0].message.content
    # Of an answer that ends by length the helper makes an exception.
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    arguments: Any = {"model": "diffgemma", "messages": MESSAGES, "max_tokens": 40, "seed": 2, "stop": stop}
    with api.chat.completions.stream(**arguments, extra_body={**MORE, "draft_every": 1}) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == text[: text.index(stop)]


def test_several_choices_have_the_seeds_that_follow(api: openai.OpenAI, client: BlockingClient) -> None:
    def text(seed: int) -> str:
        return "".join(block.text for block in client.generate(PROMPT, max_tokens=12, seed=seed, **MORE))

    expected = [text(seed) for seed in (5, 6, 7)]
    assert len(set(expected)) == 3
    found = complete(api, max_tokens=12, seed=5, n=3, extra_body=MORE)
    assert [choice.text for choice in found.choices] == expected
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    (length,) = {r.num_input_tokens for r in client.generate(PROMPT, max_tokens=12, **MORE)}
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (length, 36)
    streamed = ["", "", ""]
    for chunk in complete(api, max_tokens=12, seed=5, n=3, stream=True, extra_body=MORE):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == expected


def test_prompts_as_text_tokens_and_lists(api: openai.OpenAI, client: BlockingClient) -> None:
    def text(prompt: Any) -> str:
        given = {"prompt": prompt} if isinstance(prompt, str) else {"input_ids": prompt}
        return "".join(block.text for block in client.generate(**given, max_tokens=10, **MORE))

    prompts: list[Any] = ["red", "blue lamp", [5, 6, 7], [8]]
    expected = [text(prompt) for prompt in prompts]
    for prompt, answer in zip(prompts, expected, strict=True):
        assert complete(api, prompt=prompt, max_tokens=10, extra_body=MORE).choices[0].text == answer
    for batch, answers in ((prompts[:2], expected[:2]), (prompts[2:], expected[2:])):
        found = complete(api, prompt=batch, max_tokens=10, extra_body=MORE)
        assert [choice.text for choice in found.choices] == answers


def test_a_suffix_is_answered_by_infilling(api: openai.OpenAI, client: BlockingClient) -> None:
    more = {"max_denoising_steps": 3}
    (expected,) = client.generate(PROMPT, suffix=" blue lamp", max_tokens=12, seed=3, stream=False, **more)
    found = complete(api, suffix=" blue lamp", max_tokens=12, seed=3, extra_body=more)
    assert (found.choices[0].text, found.choices[0].finish_reason) == (expected.text, "length")
    assert found.usage.completion_tokens == 12
    chunks = list(complete(api, suffix=" blue lamp", max_tokens=12, seed=3, stream=True, extra_body=more))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
    with pytest.raises(openai.BadRequestError, match="max_tokens: None cannot be used; allowed: with suffix") as error:
        complete(api, suffix="blue")
    assert error.value.param == "max_tokens"


def test_stop_cuts_the_answer(api: openai.OpenAI) -> None:
    whole = complete(api, max_tokens=40, seed=3, extra_body=MORE).choices[0].text
    word = whole[len(whole) // 2 : len(whole) // 2 + 2]
    for stop in (word, ["nowhere at all", word]):
        found = complete(api, max_tokens=40, seed=3, stop=stop, extra_body=MORE).choices[0]
        assert (found.text, found.finish_reason) == (whole[: whole.index(word)], "stop")
        assert word not in "".join(
            chunk.choices[0].text
            for chunk in complete(api, max_tokens=40, seed=3, stop=stop, stream=True, extra_body=MORE)
        )


def test_models(api: openai.OpenAI) -> None:
    (model,) = api.models.list().data
    assert model.id == "diffgemma"
    assert api.models.retrieve("diffgemma") == model
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("other")


def test_a_deadline_is_an_error_of_its_own(api: openai.OpenAI) -> None:
    late: Any = {"max_tokens": 200, "extra_body": {"ignore_eos": True, "max_denoising_steps": 1024, "deadline": 0.2}}
    with pytest.raises(openai.InternalServerError) as error:
        chat(api, **late)
    assert (error.value.status_code, error.value.code) == (504, "deadline_exceeded")
    with pytest.raises(openai.APIError) as broken:
        for _ in chat(api, stream=True, **late):
            pass
    assert broken.value.code == "deadline_exceeded"


def test_hanging_up_cancels_on_the_server(api: openai.OpenAI, gateway: Running, logged: Callable[[str], bool]) -> None:
    stream = chat(api, stream=True, extra_headers={"x-request-id": "left-stream"}, **ENDLESS)
    next(stream)
    stream.close()
    assert logged('"request_id": "left-stream", "outcome": "cancelled"')
    quiet = {**ENDLESS["extra_body"], "draft_every": 0}
    for name, streamed in (("impatient", False), ("impatient-stream", True)):
        with pytest.raises(openai.APITimeoutError):
            chat(
                api,
                stream=streamed,
                timeout=0.5,
                extra_headers={"x-request-id": name},
                max_tokens=200,
                extra_body=quiet,
            )
        assert logged(f'"request_id": "{name}", "outcome": "cancelled"')
        assert gateway.record(name)["status"] == 499


def test_the_asynchronous_client(gateway: Running, logged: Callable[[str], bool]) -> None:
    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as api:
            arguments: Any = {"model": "diffgemma", "messages": MESSAGES, "max_tokens": 16, "extra_body": MORE}
            whole, other = await asyncio.gather(*(api.chat.completions.create(**arguments, seed=i) for i in (0, 1)))
            stream = await api.chat.completions.create(**arguments, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            endless = await api.chat.completions.create(
                model="diffgemma",
                messages=MESSAGES,
                stream=True,
                extra_headers={"x-request-id": "left-async"},
                **ENDLESS,
            )
            await endless.__anext__()
            await endless.close()
            return [whole.choices[0].message.content, text, other.choices[0].message.content]

    whole, streamed, other = asyncio.run(run())
    assert whole == streamed != other
    assert logged('"request_id": "left-async", "outcome": "cancelled"')
