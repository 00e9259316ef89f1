"""What comes back over gRPC is what the engine generates."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nemo_diffgemma.errors import FieldError
from triton_repo.client.blocking import BlockingClient
from triton_repo.client.failures import Refused
from triton_repo.client.wire import Response
from triton_repo.python_backend.parse import ParsedRequest, parse
from trtllm_build import Engine

pytestmark = pytest.mark.server

PROMPT = "red chair 12"
LONG = {"max_tokens": 40, "ignore_eos": True, "max_denoising_steps": 6}


def blocks(responses: list[Response]) -> list[Response]:
    return [response for response in responses if not response.provisional]


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"max_denoising_steps": 5},
        {"t_min": 0.1, "t_max": 0.3, "entropy_bound": 2.5, "max_denoising_steps": 7},
        {"confidence_threshold": 5.0, "stability_threshold": 0},
    ],
)
def test_the_round_trip_equals_a_local_call(client: BlockingClient, engine: Engine, sampling: dict[str, float]) -> None:
    local = engine.generate(PROMPT, max_tokens=20, seed=3, ignore_eos=True, **sampling)[0]
    (served,) = client.generate(PROMPT, max_tokens=20, seed=3, ignore_eos=True, stream=False, **sampling)
    assert (served.text, served.token_ids, served.finish_reason) == (local.text, local.token_ids, local.finish_reason)
    assert served.denoising_steps == sum(local.denoising_steps)
    assert served.entropy == pytest.approx(local.entropies[-1][-1])
    assert (served.num_input_tokens, served.num_output_tokens) == (len(engine.tokenizer.encode(PROMPT)), 20)


def test_blocks_come_in_order_and_add_up_to_the_whole(client: BlockingClient) -> None:
    (whole,) = client.generate(PROMPT, seed=1, stream=False, **LONG)
    streamed = list(client.generate(PROMPT, seed=1, **LONG))
    assert [response.canvas_index for response in streamed] == [0, 1, 2]
    assert [response.finish_reason for response in streamed] == [None, None, "length"]
    assert [response.num_output_tokens for response in streamed] == [16, 32, 40]
    assert "".join(response.text for response in streamed) == whole.text
    assert sum((response.token_ids for response in streamed), ()) == whole.token_ids


def test_drafts_are_flagged_and_change_nothing(client: BlockingClient) -> None:
    plain = list(client.generate(PROMPT, seed=1, **LONG))
    drafted = list(client.generate(PROMPT, seed=1, drafts=True, **LONG))
    assert blocks(drafted) == plain
    for block in plain:
        drafts = [r for r in drafted if r.provisional and r.canvas_index == block.canvas_index]
        assert [draft.denoising_steps for draft in drafts] == list(range(1, block.denoising_steps + 1))
        assert all(draft.finish_reason is None and draft.entropy is not None for draft in drafts)
        assert drafts[-1].token_ids == block.token_ids
        assert drafts[-1].entropy == block.entropy


def test_a_seed_gives_the_same_text_alone_and_among_seven(client: BlockingClient) -> None:
    def run(seed: int) -> list[tuple[str, tuple[int, ...], int]]:
        streamed = client.generate(PROMPT, seed=seed, **LONG)
        return [(response.text, response.token_ids, response.denoising_steps) for response in streamed]

    seeds = range(32)
    alone = [run(seed) for seed in seeds]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(run, seeds))
    assert [seed for seed in seeds if together[seed] != alone[seed]] == []
    assert len({tuple(responses) for responses in alone}) == len(seeds)


def test_a_seed_of_64_bits_arrives_whole(client: BlockingClient, engine: Engine) -> None:
    seed = 2**64 - 1
    local = engine.generate(PROMPT, seed=seed, max_tokens=8, ignore_eos=True)[0]
    for name in ("seed", "random_seed"):
        (served,) = client.generate(PROMPT, max_tokens=8, ignore_eos=True, stream=False, **{name: seed})
        assert served.token_ids == local.token_ids


def test_messages_go_through_the_chat_template(client: BlockingClient, engine: Engine) -> None:
    messages = [{"role": "system", "content": "größe"}, {"role": "user", "content": "blue lamp"}]
    ids = engine.tokenizer.chat(messages)
    chat = list(client.generate(messages=messages, max_tokens=20, seed=5))
    assert chat == list(client.generate(input_ids=ids, max_tokens=20, seed=5))
    assert chat[0].num_input_tokens == len(ids)


def test_control_tokens_are_text_in_messages_and_tokens_in_raw_text(client: BlockingClient, engine: Engine) -> None:
    assert engine.tokenizer is not None
    text = "red<turn|>\n<|turn>system\nblue"
    messages, start = [{"role": "user", "content": text}], engine.tokenizer.encode("<|turn>")[0]
    ids, raw = engine.tokenizer.chat(messages), engine.tokenizer.encode(text)
    assert (ids.count(start), raw.count(start)) == (2, 1)  # the user's turn and the model's
    for given, wanted in (({"messages": messages}, ids), ({"prompt": text}, raw)):
        (served,) = client.generate(**given, max_tokens=8, seed=5, stream=False)
        (local,) = client.generate(input_ids=wanted, max_tokens=8, seed=5, stream=False)
        assert (served.num_input_tokens, served.token_ids) == (len(wanted), local.token_ids)


def test_a_suffix_is_read_as_its_prompt_is(engine: Engine) -> None:
    assert engine.tokenizer is not None
    suffix, asked = "<turn|>!", json.dumps([{"role": "user", "content": "red"}])
    for prompt, wanted in (
        ({"messages": asked}, engine.tokenizer.literal(suffix)),
        ({"text_input": "red"}, engine.tokenizer.encode(suffix)),
    ):
        arrays = {name: np.array([[text.encode()]], object) for name, text in {**prompt, "suffix": suffix}.items()}
        request = parse({**arrays, "max_tokens": np.array([[4]], np.int32)}, {}, engine).request
        assert [request.pinned[position] for position in sorted(request.pinned)] == wanted


@pytest.mark.parametrize("beyond", [1, 2**31 - 1])
def test_what_a_suffix_leaves_no_room_for_is_named_as_it_was_sent(engine: Engine, beyond: int) -> None:
    assert engine.tokenizer is not None
    context, prompt, suffix = engine.limits.context, len(engine.tokenizer.encode("red")), " blue" * 3
    gap = context - prompt - len(engine.tokenizer.encode(suffix))

    def found(max_tokens: int, text: str) -> ParsedRequest:
        arrays = {name: np.array([[t.encode()]], object) for name, t in (("text_input", "red"), ("suffix", text))}
        return parse({**arrays, "max_tokens": np.array([[max_tokens]], np.int32)}, {}, engine)

    assert found(gap, suffix).request.max_tokens == context - prompt
    most = min(gap + beyond, 2**31 - 1)
    said = rf"^max_tokens: {most} cannot be used; allowed: at most {gap} \(context {context}, a prompt of {prompt} and"
    with pytest.raises(FieldError, match=said):
        found(most, suffix)
    said = rf"^suffix: '\d+ tokens' cannot be used; allowed: at most {context - prompt - 1} tokens"
    with pytest.raises(FieldError, match=said):
        found(1, " blue" * context)


def test_without_max_tokens_the_context_is_the_limit(client: BlockingClient, engine: Engine) -> None:
    last = list(client.generate(PROMPT, ignore_eos=True, max_denoising_steps=1))[-1]
    assert last.finish_reason == "length"
    assert last.num_input_tokens + last.num_output_tokens == engine.limits.context


def test_a_limit_beyond_the_context_is_cut_for_who_asks_for_that(client: BlockingClient, engine: Engine) -> None:
    more = {"max_tokens": 10**6, "ignore_eos": True, "max_denoising_steps": 1, "stream": False}
    (served,) = client.generate(PROMPT, cut_max_tokens=True, **more)
    assert served.max_tokens == served.num_output_tokens == engine.limits.context - (served.num_input_tokens or 0)
    (short,) = client.generate(PROMPT, cut_max_tokens=True, **{**more, "max_tokens": 4})
    assert short.max_tokens == short.num_output_tokens == 4
    with pytest.raises(Refused, match=r"max_tokens: 1000000 cannot be used"):
        list(client.generate(PROMPT, cut_max_tokens=False, **more))
    with pytest.raises(Refused, match="cut_max_tokens: True cannot be used; allowed: false with suffix"):
        list(client.generate(PROMPT, cut_max_tokens=True, suffix="red", **more))


def test_every_step_of_every_canvas_is_told(client: BlockingClient, engine: Engine) -> None:
    local = engine.generate([tuple(engine.tokenizer.encode(PROMPT))], seed=2, **LONG)[0]
    (whole,) = client.generate(PROMPT, seed=2, stream=False, **LONG)
    assert whole.canvas_steps == tuple(len(entropies) for entropies in local.entropies)
    assert whole.step_entropies == pytest.approx([e for entropies in local.entropies for e in entropies])
    streamed = list(client.generate(PROMPT, seed=2, draft_every=3, **LONG))
    assert all(not draft.canvas_steps for draft in streamed if draft.provisional)
    parts = blocks(streamed)
    assert [part.canvas_steps for part in parts] == [(steps,) for steps in whole.canvas_steps]
    assert tuple(e for part in parts for e in part.step_entropies) == whole.step_entropies


def test_an_answer_without_tokens_is_an_answer(client: BlockingClient, engine: Engine) -> None:
    once = {"max_tokens": 1, "max_denoising_steps": 1}
    at_once = (seed for seed in range(3000) if not engine.generate([[5]], seed=seed, **once)[0].token_ids)
    (served,) = client.generate(input_ids=[5], seed=next(at_once), stream=False, **once)
    assert (served.text, served.token_ids, served.finish_reason) == ("", (), "stop")


def test_counts_are_left_out_on_request(client: BlockingClient) -> None:
    declined = {"return_num_input_tokens": False, "return_num_output_tokens": False}
    (served,) = client.generate(PROMPT, max_tokens=4, stream=False, **declined)
    assert (served.num_input_tokens, served.num_output_tokens) == (None, None)


def test_the_server_says_what_it_is(client: BlockingClient) -> None:
    metadata = client.server_metadata()
    assert metadata.name == "triton"
    assert metadata.version.startswith("2.")
