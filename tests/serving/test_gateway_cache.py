"""`cached_tokens` says what a request found in the cache of an earlier one: its own beginning, under its own salt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support import quick_engine
from triton_repo.client.blocking import BlockingClient
from triton_repo.launcher.server import Server
from trtllm_build.network.cache import PREFILL_CHUNK

pytestmark = [pytest.mark.server, pytest.mark.slow]

LENGTH = PREFILL_CHUNK + 8  # of a prompt; a shorter beginning than a chunk is not kept


def long_server(text_checkpoint: Path, folder: Path) -> Server:
    """Of a model whose context holds such prompts."""
    config = json.loads((text_checkpoint / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 4 * PREFILL_CHUNK
    long = folder / "base"
    long.mkdir()
    for path in text_checkpoint.iterdir():
        (long / path.name).symlink_to(path)
    (long / "config.json").unlink()
    (long / "config.json").write_text(json.dumps(config))
    return Server(quick_engine(long, folder), http_port=0, grpc_port=0, metrics_port=0, openai_port=0)


@pytest.fixture(scope="module")
def server(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with long_server(text_checkpoint, tmp_path_factory.mktemp("long")) as running:
        yield running


@pytest.fixture
def api(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0) as connected:
        yield connected


def prompt(first: int) -> list[int]:
    """Token ids that begin as no other test's do."""
    return [first, *(7 + i % 200 for i in range(LENGTH - 1))]


def complete(api: openai.OpenAI, ids: Any, salt: str | None = None, **more: Any) -> Any:
    """Usage of a completion of one canvas, and so of nothing cached but its prompt."""
    extra = {} if salt is None else {"cache_salt": salt}
    return api.completions.create(model="diffgemma", prompt=ids, max_tokens=4, extra_body=extra, **more).usage


def cached(usage: Any) -> int:
    assert usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens
    return int(usage.prompt_tokens_details.cached_tokens)


def test_the_same_beginning_is_found_under_the_same_salt(api: openai.OpenAI) -> None:
    ids = prompt(10)
    assert cached(complete(api, ids)) == 0
    assert cached(complete(api, ids)) == LENGTH
    went_on = complete(api, [*ids, 11, 12, 13])
    assert (cached(went_on), went_on.prompt_tokens) == (LENGTH, LENGTH + 3)
    assert cached(complete(api, ids, salt="ada")) == 0
    assert cached(complete(api, ids, salt="bob")) == 0
    assert cached(complete(api, ids, salt="bob")) == LENGTH


def test_of_several_prompts_each_counts_and_of_several_choices_one(api: openai.OpenAI) -> None:
    known, new = prompt(20), prompt(21)
    complete(api, known)
    both = complete(api, [known, new])
    assert (cached(both), both.prompt_tokens) == (LENGTH, 2 * LENGTH)
    twice = complete(api, prompt(22), n=2)
    assert (cached(twice), twice.prompt_tokens) == (0, LENGTH)


def test_a_stream_says_it_at_its_end(api: openai.OpenAI) -> None:
    ids = prompt(30)
    complete(api, ids)
    chunks = list(
        api.completions.create(
            model="diffgemma", prompt=ids, max_tokens=4, stream=True, stream_options={"include_usage": True}
        )
    )
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert cached(chunks[-1].usage) == LENGTH


def test_chats_and_responses_say_it_too(api: openai.OpenAI) -> None:
    text = "red " * LENGTH  # a token per word, or more
    ask: dict[str, Any] = {"model": "diffgemma", "messages": [{"role": "user", "content": text}], "max_tokens": 4}
    first, again = (api.chat.completions.create(**ask).usage for _ in range(2))
    assert (cached(first), cached(again)) == (0, again.prompt_tokens)  # type: ignore[union-attr]
    asked: dict[str, Any] = {"model": "diffgemma", "input": text, "max_output_tokens": 4}
    response = api.responses.create(**asked).usage
    assert response is not None
    assert response.input_tokens_details.cached_tokens == response.input_tokens == again.prompt_tokens  # type: ignore[union-attr]
    salted = api.responses.create(**asked, extra_body={"cache_salt": "ada"}).usage
    assert salted is not None
    assert salted.input_tokens_details.cached_tokens == 0
    *_, last = api.responses.create(**asked, stream=True)
    assert last.response.usage.input_tokens_details.cached_tokens == response.input_tokens  # type: ignore[union-attr]


def test_grpc_says_it_with_the_last_response(server: Server) -> None:
    ids = prompt(40)
    with BlockingClient(server.grpc_url) as client:
        runs = [
            [r.num_cached_tokens for r in client.generate(input_ids=ids, max_tokens=40, ignore_eos=True, drafts=True)]
            for _ in range(2)
        ]
    assert [run[-1] for run in runs] == [0, 0]  # the first left its canvases in the cache, too, which the second lacks
    assert all(set(run[:-1]) == {None} for run in runs)
