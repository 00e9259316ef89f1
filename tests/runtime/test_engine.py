"""The running engine: requests in any company, limits, cancellation, failures."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nemo_diffgemma.errors import FieldError
from trtllm_build import Engine, load_engine
from trtllm_build.runtime.request import Block, Draft, Event, Request
from trtllm_build.sampling import SamplerConfig


@pytest.fixture(scope="module")
def engine(demo_bundle: Path) -> Iterator[Engine]:
    engine = load_engine(demo_bundle)
    yield engine
    engine.close()


def test_same_tokens_alone_and_among_seven_others(engine: Engine) -> None:
    """50 of 50, prompts and lengths mixed, several canvases each."""
    sampler = SamplerConfig(max_denoising_steps=6, confidence_threshold=1.0)
    requests = [
        Request((*tuple(range(5 + i % 7, 9 + i % 13)), i), 10 + i % 31, seed=i * 977, sampler=sampler)
        for i in range(50)
    ]
    alone = [run(engine, [request])[0] for request in requests]
    assert len({tuple(tokens) for tokens in alone}) > 25  # a constant would pass too
    for start in range(0, 50, 8):
        group = requests[start : start + 8]
        together = run(engine, group + requests[: 8 - len(group)])
        assert together[: len(group)] == alone[start : start + 8]


def run(engine: Engine, requests: list[Request]) -> list[list[int]]:
    tokens: list[list[int]] = [[] for _ in requests]
    tickets = [engine.submit(r, collector(tokens[i])) for i, r in enumerate(requests)]
    assert all(ticket.wait(60) for ticket in tickets)
    return tokens


def collector(into: list[int]):
    return lambda event: into.extend(event.token_ids) if isinstance(event, Block) else None


def test_more_requests_than_slots_all_end(engine: Engine) -> None:
    results = engine.generate([[i, i + 1] for i in range(3, 33)], max_tokens=20, max_denoising_steps=2)
    assert len(results) == 30
    assert all(r.finish_reason in ("stop", "length") for r in results)
    assert engine.stats().running == 0


@pytest.mark.parametrize("max_tokens", [1, 15, 16, 17, 40])
def test_max_tokens_is_exact_and_not_a_multiple_of_the_canvas(engine: Engine, max_tokens: int) -> None:
    result = engine.generate([[5, 6, 7]], max_tokens=max_tokens, ignore_eos=True, max_denoising_steps=2)[0]
    assert len(result.token_ids) == max_tokens
    assert result.finish_reason == "length"
    assert len(result.denoising_steps) == -(-max_tokens // engine.limits.canvas)


def test_stream_ends_in_the_same_text(engine: Engine) -> None:
    whole = engine.generate("red chair", max_tokens=40, max_denoising_steps=3, ignore_eos=True)[0]
    events = list(
        engine.generate("red chair", max_tokens=40, max_denoising_steps=3, ignore_eos=True, stream=True, draft_every=1)
    )
    blocks = [e for _, e in events if isinstance(e, Block)]
    drafts = [e for _, e in events if isinstance(e, Draft)]
    assert "".join(b.text for b in blocks) == whole.text
    assert len(drafts) == sum(b.denoising_steps for b in blocks)
    assert [d.step for d in drafts if d.canvas_index == 0] == [1, 2, 3]
    assert drafts[2].token_ids == blocks[0].token_ids
    assert all(len(b.entropies) == b.denoising_steps for b in blocks)


def test_cancel_ends_at_the_next_step_and_frees_the_slot(engine: Engine) -> None:
    events: queue.Queue[Event] = queue.Queue()
    endless = Request((5, 6), 200, sampler=SamplerConfig(max_denoising_steps=100_000), ignore_eos=True, draft_every=1)
    ticket = engine.submit(endless, events.put)
    events.get(timeout=30)
    ticket.cancel()
    ticket.cancel()
    assert ticket.wait(30)
    last = list(events.queue)[-1]
    assert isinstance(last, Block)
    assert last.finish_reason == "cancelled"
    assert engine.stats().running == 0


def test_a_stream_not_read_to_the_end_is_cancelled(engine: Engine) -> None:
    stream = engine.generate(
        [[5]], max_tokens=200, max_denoising_steps=100_000, ignore_eos=True, stream=True, draft_every=1
    )
    next(iter(stream))
    stream.close()
    assert engine.generate([[5]], max_tokens=3, max_denoising_steps=1)[0].token_ids
    assert engine.stats().running == 0


def test_a_callback_that_raises_costs_only_its_own_request(engine: Engine) -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("client gone")

    for _ in range(2 * engine.limits.slots):
        assert engine.submit(Request((5,), 4, sampler=SamplerConfig(max_denoising_steps=1)), broken).wait(30)
    assert engine.generate([[5]], max_tokens=3, max_denoising_steps=1)[0].token_ids


@pytest.mark.parametrize("layer", [0, 1])
def test_nan_fails_that_request_alone_and_names_the_layer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    """A token whose expert overflows in one layer: requests that meet it fail, the one beside it does not."""
    network = engine._backend.network
    heads = network._heads

    def poisoned(index: int, hidden: torch.Tensor, rope: object) -> tuple[torch.Tensor, ...]:
        q, k, v = heads(index, hidden, rope)
        if index == layer and len(hidden) == 5:  # the length of one request's prompt
            v = v.clone()
            v[2] = float("inf")
        return q, k, v

    monkeypatch.setattr(network, "_heads", poisoned)
    events: list[list[Block]] = [[], []]
    sampler = SamplerConfig(max_denoising_steps=3)
    prompts = [(5, 6, 7, 8, 9), (5, 6)]
    tickets = [engine.submit(Request(p, 8, sampler=sampler), events[i].append) for i, p in enumerate(prompts)]
    assert all(t.wait(30) for t in tickets)
    assert events[0][-1].finish_reason == "error"
    assert f"NaN or infinity in the hidden state after layer {layer}, encoding" in (events[0][-1].error or "")
    assert events[1][-1].finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    ("arguments", "field", "text"),
    [
        ({"max_tokens": 0}, "max_tokens", "an integer >= 1"),
        ({"max_tokens": 250}, "max_tokens", "at most 253 after a prompt of 3 tokens (context 256)"),
        ({"max_tokens": 254}, "max_tokens", "build with a larger gpu.limits.context"),
        ({"max_denoising_steps": 0}, "max_denoising_steps", "an integer >= 1"),
        ({"t_min": 0.0}, "t_min", "a number >= 1e-06"),
        ({"t_max": 0.1}, "t_max", "at least t_min (0.4)"),
        ({"entropy_bound": float("nan")}, "entropy_bound", "a finite number >= 0"),
        ({"stability_threshold": -1}, "stability_threshold", "an integer >= 0"),
        ({"stop": "END"}, "stop", "a tuple of str"),
        ({"stop_token_ids": 5}, "stop_token_ids", "a tuple of int"),
        ({"pinned": [1, 2]}, "pinned", "a mapping from positions"),
        ({"deadline": True}, "deadline", "seconds > 0, or None"),
        ({"canvas_length": "wide"}, "canvas_length", 'an integer >= 1, "fit" or None'),
        ({"canvas_length": 17, "max_tokens": 20}, "canvas_length", "at most 16, the model's own"),
        ({"seed": -1}, "seed", "an integer from 0 to 18446744073709551615"),
        ({"beam_width": 4}, "beam_width", "remove beam_width"),
    ],
)
def test_bad_values_are_refused_by_name(engine: Engine, arguments: dict, field: str, text: str) -> None:
    if arguments == {"max_tokens": 250}:
        assert engine.generate([[5, 6, 7]], max_tokens=250, max_denoising_steps=1)[0].token_ids is not None
        arguments = {"max_tokens": 260}
    with pytest.raises(FieldError) as error:
        engine.generate([[5, 6, 7]], **arguments)
    assert error.value.field == field
    assert text in str(error.value)


def test_prompts_are_checked(engine: Engine) -> None:
    with pytest.raises(FieldError, match="prompt: 'no tokens' cannot be used; allowed: at least one token"):
        engine.generate([[]], max_tokens=3)
    with pytest.raises(FieldError, match=r"prompt: \[300\] cannot be used; allowed: token ids from 0 to 299"):
        engine.generate([[5, 300]], max_tokens=3)
    with pytest.raises(FieldError, match=r"prompt: '256 tokens' cannot be used; allowed: at most 255 tokens"):
        engine.generate([[5] * 256], max_tokens=3)


def test_logits_are_of_the_canvas(engine: Engine) -> None:
    logits = engine.logits([5, 6], list(range(16)))
    assert logits.shape == (16, 300)
    assert logits.abs().max() <= 30
    assert not torch.equal(logits, engine.logits([5, 7], list(range(16))))


def test_a_threshold_that_no_memory_could_hold_only_keeps_it_from_converging(engine: Engine) -> None:
    (found,) = engine.generate(
        [[3, 4]], max_tokens=4, ignore_eos=True, max_denoising_steps=3, stability_threshold=2**31 - 1
    )
    assert found.denoising_steps == (3,)
