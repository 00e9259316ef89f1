"""What a request may rule about its answer, its turn and its end, through the running engine."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_diffgemma.diffusion import draws
from nemo_diffgemma.errors import FieldError
from trtllm_build import Engine, load_engine
from trtllm_build.backends import load_backend, slots
from trtllm_build.bundle import Bundle
from trtllm_build.runtime.request import Block, Draft, Event, Request, RequestStats
from trtllm_build.runtime.scheduler import QueueFull
from trtllm_build.sampling import SamplerConfig

FEW = SamplerConfig(max_denoising_steps=4, confidence_threshold=0.0)  # always all four steps
ENDLESS = SamplerConfig(max_denoising_steps=100_000, confidence_threshold=0.0)
EOS, TURN_END = 1, 5
CANVAS = 16


@pytest.fixture(scope="module")
def engine(demo_bundle: Path) -> Iterator[Engine]:
    engine = load_engine(demo_bundle)
    yield engine
    engine.close()


@pytest.fixture
def small(demo_bundle: Path) -> Iterator[Callable[..., Engine]]:
    """Makes engines of the same bundle with other limits."""
    made: list[Engine] = []

    def make(**limits: int) -> Engine:
        bundle = Bundle.open(demo_bundle)
        bundle.manifest["limits"] |= limits
        made.append(Engine(bundle, load_backend(bundle)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def request(max_tokens: int = 40, prompt: tuple[int, ...] = (7, 8, 9), seed: int = 3, **options: Any) -> Request:
    return Request(prompt, max_tokens, seed, **({"sampler": FEW, "ignore_eos": True} | options))


def events_of(engine: Engine, *requests: Request) -> list[list[Event]]:
    """All events of requests that run together."""
    events: list[list[Event]] = [[] for _ in requests]
    tickets = [engine.submit(r, e.append) for r, e in zip(requests, events, strict=True)]
    assert all(ticket.wait(60) for ticket in tickets)
    return events


def blocks(events: list[Event]) -> list[Block]:
    return [e for e in events if isinstance(e, Block)]


def drafts(events: list[Event]) -> list[Draft]:
    return [e for e in events if isinstance(e, Draft)]


def answer(events: list[Event]) -> list[int]:
    return [t for b in blocks(events) for t in b.token_ids]


def text(events: list[Event]) -> str:
    return "".join(b.text for b in blocks(events))


def reason(events: list[Event]) -> str | None:
    """Of the last block; no other has one."""
    assert all(b.finish_reason is None for b in blocks(events)[:-1])
    assert events[-1] is blocks(events)[-1]
    return blocks(events)[-1].finish_reason


def stats(events: list[Event]) -> RequestStats:
    """Of the last block; no other has any."""
    assert all(b.stats is None for b in blocks(events)[:-1])
    found = blocks(events)[-1].stats
    assert found is not None
    return found


# -- what the answer is made of -------------------------------------------------------


def test_pins_are_in_every_draft_and_in_the_answer(engine: Engine) -> None:
    pinned = {0: 40, 15: 41, 16: 42, 23: 43, 39: 44}
    (plain,), (events,) = events_of(engine, request()), events_of(engine, request(pinned=pinned, draft_every=1))
    assert not any(answer(plain)[p] == t for p, t in pinned.items())
    assert {p: answer(events)[p] for p in pinned} == pinned
    seen = Counter(d.canvas_index for d in drafts(events))
    assert seen == {0: 4, 1: 4, 2: 4}
    for draft in drafts(events):
        here = {p - CANVAS * draft.canvas_index: t for p, t in pinned.items() if p // CANVAS == draft.canvas_index}
        assert {row: draft.token_ids[row] for row in here} == here


def test_a_pin_is_read_by_the_positions_around_it(engine: Engine) -> None:
    """It is part of the canvas that is denoised, not put over the result."""
    found = [answer(events_of(engine, request(16, pinned={4: token}))[0]) for token in (40, 41)]
    assert sum(a != b for a, b in zip(*found, strict=True)) > 1


def test_pins_are_not_lost_to_an_earlier_end(engine: Engine) -> None:
    """Between the end of sequence and one other token, with the last position pinned."""
    (events,) = events_of(engine, request(40, allowed=(EOS, 9), pinned={39: 50}, ignore_eos=False))
    assert answer(events) == [9] * 39 + [50]
    assert reason(events) == "length"


def test_an_allowed_set_is_never_left(engine: Engine) -> None:
    allowed, own = (20, 33, 47, 48, 250), (100, 101)
    (events,) = events_of(engine, request(allowed=allowed, allowed_at={18: own, 2: own}, draft_every=1))
    assert len(answer(events)) == 40
    assert len(set(answer(events))) > 2
    for ids, start in [(answer(events), 0), *((d.token_ids, d.canvas_index * CANVAS) for d in drafts(events))]:
        for row, token in enumerate(ids):
            assert token in (own if start + row in (2, 18) else allowed)


def test_every_step_chooses_within_the_rules(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples too, which no draft shows; pins stand in every canvas, while noise is of the whole vocabulary."""
    chosen: set[int] = set()
    seen: set[int] = set()
    at_pin: set[int] = set()
    denoise = engine._backend.denoise

    def watched(steps: Any) -> Any:
        results = denoise(steps)
        for step, result in zip(steps, results, strict=True):
            chosen.update(result.sampled_ids.tolist(), result.argmax_ids.tolist())
            seen.update(step.canvas_ids.tolist())
            at_pin.add(int(step.canvas_ids[3]))
        return results

    monkeypatch.setattr(engine._backend, "denoise", watched)
    events_of(engine, request(CANVAS, allowed=(20, 33, 47, 48, 250), pinned={3: 77}))
    assert chosen == {20, 33, 47, 48, 250, 77}
    assert at_pin == {77}
    assert len(seen - chosen) > 20


@pytest.mark.parametrize("least", [0, 1, 16, 20, 40])
def test_min_tokens(engine: Engine, least: int) -> None:
    """Where every position but the first of them could only end the answer."""
    ends = {p: (EOS, 9) if p < least else (EOS,) for p in range(40)}
    (events,) = events_of(engine, request(allowed_at=ends, min_tokens=least, ignore_eos=False))
    assert answer(events) == [9] * least
    assert reason(events) == ("length" if least == 40 else "stop")


def test_both_ends_of_sequence_end_an_answer_unless_ignored(engine: Engine) -> None:
    for end in (EOS, TURN_END):
        pinned = {**dict.fromkeys(range(20), 9), 20: end}
        (ended,) = events_of(engine, request(pinned=pinned, ignore_eos=False))
        assert (answer(ended), reason(ended)) == ([9] * 20, "stop")
        (ignored,) = events_of(engine, request(pinned=pinned))
        assert answer(ignored)[:21] == [9] * 20 + [end]
        assert (len(answer(ignored)), reason(ignored)) == (40, "length")


def test_stop_tokens_cut_the_answer_before_the_first_of_them(engine: Engine) -> None:
    whole = answer(events_of(engine, request())[0])
    for position in (2, 20):
        token = whole[position]
        first = whole.index(token)
        (events,) = events_of(engine, request(stop_token_ids=(299, token)))
        assert (answer(events), reason(events)) == (whole[:first], "stop")
        assert all(token not in d.token_ids for d in drafts(events))


def test_a_stop_token_waits_for_min_tokens(engine: Engine) -> None:
    token = answer(events_of(engine, request())[0])[2]
    (events,) = events_of(engine, request(stop_token_ids=(token,), min_tokens=30))
    assert len(answer(events)) >= 30
    assert token not in answer(events)


@pytest.fixture(scope="module")
def letters(engine: Engine) -> dict[str, Any]:
    """Options for an answer of small letters, each a token, whose text is ``abc...``."""
    assert engine.tokenizer is not None
    ids = [engine.tokenizer.encode(letter)[-1] for letter in "abcdefghijklmnopqrstuvwxyz" * 2]
    assert [engine.tokenizer.decode([i]) for i in ids[:26]] == list("abcdefghijklmnopqrstuvwxyz")
    return {"pinned": dict(enumerate(ids[:40]))}


@pytest.mark.parametrize(
    ("stop", "end"),
    [
        (("def",), 3),
        (("a",), 0),
        (("nopqr",), 13),  # begins in the first canvas, ends in the second
        (("pq",), 15),
        (("qr",), 16),
        (("m", "jk"), 9),
        (("jkx", "lm"), 11),  # what only begins like a stop string is shown
        (("klmnopqrstuvwxyzabcdefg",), 10),  # over three canvases
    ],
)
def test_stop_strings_are_never_shown(engine: Engine, letters: dict[str, Any], stop: tuple[str, ...], end: int) -> None:
    whole = "abcdefghijklmnopqrstuvwxyzabcdefghijklmn"
    assert text(events_of(engine, request(**letters))[0]) == whole
    (events,) = events_of(engine, request(**letters, stop=stop, draft_every=1))
    assert (text(events), reason(events)) == (whole[:end], "stop")
    assert answer(events) == list(letters["pinned"].values())[:end]
    assert not any(s in d.text for s in stop for d in drafts(events))
    shown = ""
    for block in blocks(events):  # at no time more than the answer, so nothing had to be taken back
        shown += block.text
        assert whole[:end].startswith(shown)


def test_a_stop_string_that_stays_unfinished_is_shown_in_the_end(engine: Engine, letters: dict[str, Any]) -> None:
    (events,) = events_of(engine, request(**letters, stop=("mnx", "lmno!")))
    assert text(events) == "abcdefghijklmnopqrstuvwxyzabcdefghijklmn"
    assert (len(answer(events)), reason(events)) == (40, "length")


# -- how it is denoised ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("canvas_length", "max_tokens", "sizes"),
    [
        (None, 20, [16, 4]),
        (16, 20, [16, 4]),
        (5, 12, [5, 5, 2]),
        (1, 3, [1, 1, 1]),
        ("fit", 5, [5]),
        ("fit", 16, [16]),
        ("fit", 20, [16, 4]),
    ],
)
def test_canvas_length(
    engine: Engine, canvas_length: int | str | None, max_tokens: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: set[int] = set()
    denoise = engine._backend.denoise
    monkeypatch.setattr(
        engine._backend, "denoise", lambda steps: (widths.update(len(s.canvas_ids) for s in steps), denoise(steps))[1]
    )
    (events,) = events_of(engine, request(max_tokens, canvas_length=canvas_length))
    assert [len(b.token_ids) for b in blocks(events)] == sizes
    assert widths == {sizes[0]}
    assert reason(events) == "length"


def test_too_wide_a_canvas_is_refused(engine: Engine) -> None:
    with pytest.raises(FieldError, match="canvas_length: 17 cannot be used; allowed: at most 16, the model's own"):
        engine.submit(request(canvas_length=17), lambda event: None)


def test_a_seed_canvas_takes_the_place_of_the_first_noise(engine: Engine) -> None:
    """The same ids as the noise change nothing; others change what the first step sees."""
    plain, drafted = request(20), request(20, draft_every=1)
    noise = [draws.uniform_to_token(draws.uniforms(3, i, 0, draws.NOISE, 16), 300).tolist() for i in (0, 1)]
    same = replace(drafted, seed_canvas=tuple(noise[0] + noise[1][:4]))
    other = replace(drafted, seed_canvas=tuple(range(30, 46)))
    own, seeded, changed = (events_of(engine, r)[0] for r in (drafted, same, other))
    assert without_times(seeded) == without_times(own)
    assert drafts(changed)[0].entropy != drafts(own)[0].entropy
    assert drafts(changed)[0].token_ids != drafts(own)[0].token_ids
    assert answer(events_of(engine, plain)[0]) == answer(own)


def test_draft_every_third_step(engine: Engine) -> None:
    sampler = SamplerConfig(max_denoising_steps=7, confidence_threshold=0.0)
    (events,) = events_of(engine, request(20, sampler=sampler, draft_every=3))
    assert [(d.canvas_index, d.step) for d in drafts(events)] == [(0, 3), (0, 6), (1, 3), (1, 6)]
    assert [b.denoising_steps for b in blocks(events)] == [7, 7]
    for d in drafts(events):
        assert d.entropy == blocks(events)[d.canvas_index].entropies[d.step - 1]
    assert drafts(events_of(engine, request(20, sampler=sampler))[0]) == []


# -- in company -----------------------------------------------------------------------

CONTROLS: dict[str, dict[str, Any]] = {
    "pinned": {"pinned": {0: 40, 17: 41}},
    "allowed": {"allowed": (20, 33, 47, 48, 250)},
    "allowed_at": {"allowed_at": {2: (20, 21), 30: (22, 23)}, "min_tokens": 3},
    "min_tokens": {"min_tokens": 25, "stop_token_ids": tuple(range(100, 200)), "ignore_eos": False},
    "stop_token_ids": {"stop_token_ids": tuple(range(290, 300))},
    "stop": {"stop": ("e",)},
    "canvas_length": {"canvas_length": 7, "draft_every": 2},
    "seed_canvas": {"seed_canvas": tuple(range(50, 75))},
}


def without_times(events: list[Event]) -> list[Event]:
    return [replace(e, stats=None) if isinstance(e, Block) else e for e in events]


@pytest.fixture(scope="module")
def together(engine: Engine) -> dict[str, list[Event]]:
    """All eight at once."""
    found = events_of(engine, *(controlled(name) for name in CONTROLS))
    return dict(zip(CONTROLS, found, strict=True))


def controlled(name: str) -> Request:
    index = list(CONTROLS).index(name)
    return request(prompt=tuple(range(9, 12 + index)), seed=index, **CONTROLS[name])


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_gives_the_same_answer_alone_and_among_seven_others(
    engine: Engine, together: dict[str, list[Event]], name: str
) -> None:
    """Every event of it, entropies to the last bit."""
    (alone,) = events_of(engine, controlled(name))
    assert without_times(together[name]) == without_times(alone)
    assert reason(alone) in ("stop", "length")
    without = replace(controlled(name), **{k: getattr(request(), k) for k in CONTROLS[name]})
    assert without_times(events_of(engine, without)[0]) != without_times(alone)  # it does rule something


def test_requests_without_controls_do_not_notice_neighbours_with_them(engine: Engine) -> None:
    plain = [request(prompt=tuple(range(20, 23 + i)), seed=i) for i in range(4)]
    alone = [events_of(engine, r)[0] for r in plain]
    ruled = [controlled(name) for name in ("pinned", "allowed", "min_tokens", "canvas_length")]
    mixed = [r for pair in zip(ruled, plain, strict=True) for r in pair]
    found = events_of(engine, *mixed)[1::2]
    assert [without_times(e) for e in found] == [without_times(e) for e in alone]


# -- turns and ends -------------------------------------------------------------------


class Gate:
    """Holds the engine's thread inside a request's first event until opened, so that others can be lined up."""

    def __init__(self, engine: Engine, **options: Any):
        self.reached, self.opened = threading.Event(), threading.Event()
        self.events: list[Event] = []
        self.ticket = engine.submit(request(8, draft_every=1, **options), self._hold)
        assert self.reached.wait(30)

    def _hold(self, event: Event) -> None:
        self.events.append(event)
        self.reached.set()
        assert self.opened.wait(30)

    def open(self) -> None:
        self.opened.set()
        assert self.ticket.wait(30)


def test_a_lower_priority_number_goes_first(small: Callable[..., Engine]) -> None:
    engine = small(slots=1)
    order: list[str] = []
    gate = Gate(engine)
    tickets = [
        engine.submit(request(4, priority=p), lambda event, name=name: order.append(name))
        for name, p in (("late", 5), ("first of two", 0), ("second of two", 0), ("urgent", -3))
    ]
    assert engine.stats().waiting == 4
    gate.open()
    assert all(t.wait(30) for t in tickets)
    assert order == ["urgent", "first of two", "second of two", "late"]


def test_a_full_queue_refuses_and_goes_on(small: Callable[..., Engine]) -> None:
    engine = small(slots=1, queue=1)
    gate = Gate(engine)
    waiting = engine.submit(request(4), lambda event: None)
    with pytest.raises(QueueFull, match="1 requests wait already; the limit is 1"):
        engine.submit(request(4), lambda event: None)
    gate.open()
    assert waiting.wait(30)
    assert engine.submit(request(4), lambda event: None).wait(30)
    assert engine.stats().refused == 1
    assert engine.stats().finished == {"length": 3}


def test_a_batch_of_more_prompts_than_may_wait_is_not_refused(small: Callable[..., Engine]) -> None:
    """Whoever hands over all at once leaves it to the engine when each is queued."""
    engine = small(slots=8, queue=2)
    assert len(engine.generate([[i] for i in range(10, 40)], max_tokens=4, max_denoising_steps=1)) == 30


def test_a_deadline_ends_a_running_request(engine: Engine) -> None:
    """The canvas under way is dropped."""
    (events,) = events_of(engine, request(200, sampler=ENDLESS, deadline=0.4, draft_every=1))
    assert reason(events) == "deadline"
    assert blocks(events)[-1].error is None
    assert 0.4 <= stats(events).seconds < 20
    assert stats(events).denoising_steps >= len(drafts(events)) > 0
    assert engine.stats().running == 0


def test_a_deadline_ends_a_waiting_request(small: Callable[..., Engine]) -> None:
    engine = small(slots=1)
    gate = Gate(engine)
    events: list[Event] = []
    ticket = engine.submit(request(4, deadline=0.05), events.append)
    assert not ticket.wait(0.1)
    gate.open()
    assert ticket.wait(30)
    assert (answer(events), reason(events)) == ([], "deadline")
    assert (stats(events).queue_seconds, stats(events).first_block_seconds) == (None, None)
    assert (stats(events).canvases, stats(events).encoded_tokens) == (0, 0)


def test_a_deadline_that_is_met_changes_nothing(engine: Engine) -> None:
    (early,), (never,) = events_of(engine, request(deadline=60.0)), events_of(engine, request())
    assert without_times(early) == without_times(never)


# -- counts ---------------------------------------------------------------------------


def test_stats_are_on_the_last_block(engine: Engine) -> None:
    (events,) = events_of(engine, request(40, prompt=tuple(range(10, 31))))
    found = stats(events)
    assert (found.prompt_tokens, found.reused_tokens, found.encoded_tokens) == (21, 0, 21 + 2 * CANVAS)
    assert (found.canvases, found.denoising_steps) == (3, 12)
    assert 1 <= found.accepted_per_step <= CANVAS
    assert found.cache_bytes > 0
    assert found.queue_seconds is not None
    assert found.first_block_seconds is not None
    assert 0 <= found.queue_seconds <= found.first_block_seconds <= found.seconds < 60


def test_totals_add_up(small: Callable[..., Engine]) -> None:
    engine = small()
    empty = engine.stats()
    assert (empty.tokens, empty.finished, empty.cache_bytes) == (0, {}, 0)
    assert (empty.steps_per_canvas, empty.tokens_per_step, empty.queue_seconds) == (None, None, None)
    requests = [controlled(name) for name in CONTROLS] + [request(i) for i in range(1, 30, 7)]
    events = events_of(engine, *requests)
    events += events_of(engine, request(40, sampler=ENDLESS, deadline=0.05))
    gate = Gate(engine, sampler=ENDLESS)
    gate.ticket.cancel()
    gate.open()
    events.append(gate.events)
    total, each = engine.stats(), [stats(e) for e in events]
    assert total.finished == Counter(map(reason, events))
    assert set(total.finished) == {"stop", "length", "deadline", "cancelled"}
    assert total.tokens == sum(len(answer(e)) for e in events)
    assert total.canvases == sum(s.canvases for s in each)
    assert total.denoising_steps == sum(s.denoising_steps for s in each)
    assert total.encoded_tokens == sum(s.encoded_tokens for s in each)
    assert total.reused_tokens == 0
    assert (total.waiting, total.running, total.refused) == (0, 0, 0)
    assert total.steps_per_canvas == pytest.approx(total.denoising_steps / total.canvases)
    assert total.tokens_per_step == pytest.approx(total.tokens / total.denoising_steps)
    accepted = sum(s.accepted_per_step * s.denoising_steps for s in each)
    assert total.accepted_per_step == pytest.approx(accepted / total.denoising_steps)
    assert total.cache_bytes > 0


def test_totals_count_a_request_by_the_time_its_end_is_seen(engine: Engine) -> None:
    """Whoever has read the last block and then asks must not find the request still running."""
    seen: list[tuple[int, int]] = []
    before = engine.stats()

    def ask(event: Event) -> None:
        now = engine.stats()
        seen.append((now.running, sum(now.finished.values()) - sum(before.finished.values())))

    assert engine.submit(request(4), ask).wait(30)
    assert seen == [(0, 1)]


# -- prefixes -------------------------------------------------------------------------

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
