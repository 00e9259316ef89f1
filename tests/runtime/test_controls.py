"""What a request may rule about its answer, through the running engine."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from nemo_diffgemma.diffusion import draws
from nemo_diffgemma.errors import FieldError
from tests.runtime.engines import (
    CANVAS,
    EOS,
    TURN_END,
    answer,
    blocks,
    drafts,
    events_of,
    reason,
    request,
    text,
    without_times,
)
from trtllm_build import Engine
from trtllm_build.sampling import SamplerConfig


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
