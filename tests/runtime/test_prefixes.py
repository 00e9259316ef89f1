"""Prompts that go on from earlier ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.runtime.engines import (
    CANVAS,
    answer,
    blocks,
    events_of,
    request,
    stats,
    without_times,
)
from trtllm_build import Engine
from trtllm_build.backends import slots
from trtllm_build.runtime.request import Event
from trtllm_build.sampling import SamplerConfig

PROMPT = tuple(range(20, 60))
# A prefix is encoded in other pieces than the whole, so it rounds differently; random weights make six times as much of
# that with every step.
TWO = SamplerConfig(max_denoising_steps=2, confidence_threshold=0.0)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts go into the cache 16 tokens at a time; a shorter match is not reused."""
    monkeypatch.setattr(slots, "PREFILL_CHUNK", 16)


def next_turn(first: list[Event]) -> tuple[int, ...]:
    """A prompt that goes on after the first answer's encoded canvases, by more than its slot had room for."""
    return (*PROMPT, *answer(first)[: 2 * CANVAS], *range(70, 130))


@pytest.mark.usefixtures("small_pieces")
def test_a_prompt_that_goes_on_from_an_earlier_one_encodes_only_what_is_new(small: Callable[..., Engine]) -> None:
    engine, fresh = small(), small()
    (first,) = events_of(engine, request(3 * CANVAS, prompt=PROMPT))
    assert (stats(first).reused_tokens, stats(first).encoded_tokens) == (0, 40 + 2 * CANVAS)
    again = request(CANVAS, prompt=next_turn(first), sampler=TWO)
    ours, theirs = events_of(engine, again)[0], events_of(fresh, again)[0]
    assert (stats(ours).reused_tokens, stats(ours).encoded_tokens) == (40 + 2 * CANVAS, 60)
    assert (stats(theirs).reused_tokens, stats(theirs).encoded_tokens) == (0, 132)
    assert answer(ours) == answer(theirs)
    assert blocks(ours)[0].entropies == pytest.approx(blocks(theirs)[0].entropies, rel=1e-4)
    assert engine.stats().reused_tokens == 72
    assert_cache_equals(engine, again.prompt_ids)


def assert_cache_equals(engine: Engine, prompt: tuple[int, ...]) -> None:
    """The one cache that holds ``prompt`` gives the logits of a whole computation."""
    backend, canvas = engine._backend, torch.arange(100, 100 + CANVAS)
    (cache,) = [c for c in backend._caches.values() if c.length == len(prompt)]
    with torch.inference_mode():
        ours = backend.vocabulary.logits(backend.network.denoise(canvas, None, cache))
    torch.testing.assert_close(ours, engine.logits(prompt, canvas.tolist()), atol=2e-4, rtol=0)


@pytest.mark.usefixtures("small_pieces")
def test_the_same_prompt_again_encodes_nothing(small: Callable[..., Engine]) -> None:
    engine = small()
    first, second = (events_of(engine, request(CANVAS, prompt=PROMPT))[0] for _ in range(2))
    assert (stats(second).reused_tokens, stats(second).encoded_tokens) == (40, 0)
    assert without_times(first) == without_times(second)


@pytest.mark.usefixtures("small_pieces")
def test_the_same_prompt_under_another_salt_is_encoded_anew(small: Callable[..., Engine]) -> None:
    engine = small()
    found = [
        events_of(engine, request(CANVAS, prompt=PROMPT, cache_salt=salt))[0] for salt in ("ada", "ada", "bob", "")
    ]
    assert [stats(events).reused_tokens for events in found] == [0, 40, 0, 0]
    assert [stats(events).encoded_tokens for events in found] == [40, 0, 40, 40]
    assert all(without_times(events) == without_times(found[0]) for events in found)
    assert engine.stats().reused_tokens == 40


@pytest.mark.usefixtures("small_pieces")
def test_a_prompt_that_differs_in_one_token_reuses_nothing(small: Callable[..., Engine]) -> None:
    engine = small()
    events_of(engine, request(CANVAS, prompt=PROMPT))
    (events,) = events_of(engine, request(CANVAS, prompt=(*PROMPT[:30], 9, *PROMPT[31:], 8)))
    assert (stats(events).reused_tokens, stats(events).encoded_tokens) == (0, 41)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("limits", [{"slots": 1}, {"slots": 2, "cache_tokens": 320}])
def test_after_eviction_it_is_computed_again_with_the_same_answer(
    small: Callable[..., Engine], limits: dict[str, int]
) -> None:
    """Its slot is taken, or its pages are while its slot stays free."""
    kept, evicting = small(), small(**limits)
    found = []
    for engine, caches in ((kept, 2), (evicting, 1)):
        (first,) = events_of(engine, request(3 * CANVAS, prompt=PROMPT))
        events_of(engine, request(10, prompt=(9,) * 240))
        assert len(engine._backend._caches) == caches
        found.append(events_of(engine, request(CANVAS, prompt=next_turn(first), sampler=TWO))[0])
    assert [stats(e).reused_tokens for e in found] == [72, 0]
    assert [stats(e).encoded_tokens for e in found] == [60, 132]
    assert answer(found[0]) == answer(found[1])
    assert blocks(found[0])[0].entropies == pytest.approx(blocks(found[1])[0].entropies, rel=1e-4)


@pytest.mark.usefixtures("small_pieces")
def test_a_reused_prefix_keeps_controls(small: Callable[..., Engine]) -> None:
    """Positions of rules count from the answer's start, wherever that is in the cache."""
    engine, fresh = small(), small()
    (first,) = events_of(engine, request(3 * CANVAS, prompt=PROMPT))
    again = request(20, prompt=next_turn(first), pinned={0: 40, 18: 41}, allowed=(33, 34, 35), sampler=TWO)
    ours, theirs = events_of(engine, again)[0], events_of(fresh, again)[0]
    assert stats(ours).reused_tokens == 72
    assert answer(ours) == answer(theirs)
    assert (answer(ours)[0], answer(ours)[18]) == (40, 41)


@pytest.mark.usefixtures("small_pieces")
def test_long_prompts_give_the_same_answers_alone_and_together(small: Callable[..., Engine]) -> None:
    """The pieces a prompt is encoded in follow from itself, so entropies are equal to the last bit."""
    requests = [request(24, prompt=tuple(range(10 * i, 10 * i + 11 + 9 * i)), seed=i) for i in range(8)]
    alone, together = small(), small()
    expected = [events_of(alone, r)[0] for r in requests]
    found = events_of(together, *requests)
    assert [stats(e).reused_tokens for e in [*expected, *found]] == [0] * 16
    assert [without_times(e) for e in found] == [without_times(e) for e in expected]
