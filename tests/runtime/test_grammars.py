"""Answers of a guaranteed form, through the running engine, whose random weights keep to none."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from nemo_diffgemma.errors import FieldError
from tests.runtime.engines import CANVAS, answer, blocks, drafts, events_of, reason, request, text, without_times
from trtllm_build import Engine, backends
from trtllm_build.backends.cuda.backend import Cuda
from trtllm_build.backends.lowered import Lowered
from trtllm_build.backends.torch_cpu import TorchCpu
from trtllm_build.runtime.request import Request

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "count": {"type": "integer"}, "ok": {"type": "boolean"}},
    "required": ["name", "count", "ok"],
}
GRAMMARS: dict[str, dict[str, Any]] = {
    "choice": {"choice": ["yes", "no", "neither of the two"]},
    "regex": {"regex": "[a-c]{2,30}-[0-9]{4}"},
    "json_schema": {"json_schema": SCHEMA},
    "json_object": {"json_object": True},
}


def bound(name: str, max_tokens: int = 3 * CANVAS, **options: Any) -> Request:
    return request(max_tokens, grammar=GRAMMARS[name], ignore_eos=False, **options)


def is_of(name: str, written: str) -> bool:
    match name:
        case "choice":
            return written in GRAMMARS[name]["choice"]
        case "regex":
            return re.fullmatch(GRAMMARS[name]["regex"], written) is not None
        case "json_schema":
            found = json.loads(written)
            kinds = {"name": str, "count": int, "ok": bool}
            return list(found) == list(kinds) and all(type(found[key]) is kind for key, kind in kinds.items())
    return isinstance(json.loads(written), dict)


@pytest.mark.parametrize("name", GRAMMARS)
@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_every_answer_is_of_its_form_and_whole(engine: Engine, name: str, temperature: float) -> None:
    requests = [bound(name, seed=seed, temperature=temperature) for seed in range(6)]
    for events in events_of(engine, *requests):
        assert is_of(name, text(events)), text(events)
        assert reason(events) == "stop"
        assert all(b.log_z is not None and b.log_z <= 0 for b in blocks(events))


@pytest.mark.parametrize("name", ["choice", "json_schema"])
def test_an_answer_is_whole_within_as_few_tokens_as_there_can_be(engine: Engine, name: str) -> None:
    with pytest.raises(FieldError, match=r"max_tokens: 1 cannot be used; allowed: at least \d+, the"):
        events_of(engine, bound(name, 1))
    least = next(n for n in range(2, 60) if _fits(engine, bound(name, n)))
    # one canvas, one and a bit, and several: cut anywhere, and whole all the same
    for max_tokens in (least, least + 1, CANVAS, CANVAS + 1, 2 * CANVAS + 5):
        if max_tokens >= least:
            (events,) = events_of(engine, bound(name, max_tokens))
            assert is_of(name, text(events)), (max_tokens, text(events))
            assert len(answer(events)) <= max_tokens
            assert reason(events) == "stop"


def _fits(engine: Engine, request: Request) -> bool:
    try:
        engine.submit(request, lambda _event: None).cancel()
    except FieldError:
        return False
    return True


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_grammar_gives_the_same_answer_alone_and_in_company(engine: Engine, name: str) -> None:
    """Every event of it, entropies to the last bit; and those without one do not notice it."""
    plain = [request(seed=seed) for seed in range(3)]
    (alone,) = events_of(engine, bound(name, draft_every=1))
    unbound = [events_of(engine, r)[0] for r in plain]
    others = [bound(other, seed=9) for other in GRAMMARS]
    together = events_of(engine, plain[0], *others[:2], bound(name, draft_every=1), plain[1], *others[2:], plain[2])
    assert without_times(together[3]) == without_times(alone)
    assert [without_times(together[i]) for i in (0, 4, 7)] == [without_times(events) for events in unbound]
    assert is_of(name, text(alone))
    assert drafts(alone)[-1].token_ids == blocks(alone)[-1].token_ids


def test_narrow_canvases_seeds_and_reused_prompts_go_with_a_grammar(engine: Engine) -> None:
    for options in ({"canvas_length": 7}, {"canvas_length": "fit"}, {"seed_canvas": tuple(range(40, 60))}):
        for _ in range(2):  # the second finds the prompt in the cache
            (events,) = events_of(engine, bound("json_schema", **options))
            assert is_of("json_schema", text(events)), options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed", (20, 21)),
        ("allowed_at", {0: (20,)}),
        ("pinned", {0: 40}),
        ("min_tokens", 3),
        ("ignore_eos", True),
        ("stop", ("a",)),
        ("stop_token_ids", (20,)),
        ("top_p", 0.5),
    ],
)
def test_what_could_cut_an_answer_or_forbid_what_it_needs_does_not_go_with_a_grammar(name: str, value: Any) -> None:
    with pytest.raises(FieldError, match=f"^{name}: .*beside grammar"):
        bound("choice", **{name: value}) if name != "ignore_eos" else request(grammar={"choice": ["a"]})


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ({}, "grammar: .*exactly one of"),
        ({"regex": "a", "choice": ["b"]}, "grammar: .*exactly one of"),
        ({"regex": "(?=a)b"}, r"grammar\.regex"),
        ({"json_schema": {"type": "object", "properties": {"a": {"type": "strange"}}}}, r"properties\.a\.type"),
        ({"choice": []}, r"grammar\.choice"),
        ("yes", "grammar: .*an object"),
    ],
)
def test_a_grammar_that_is_none_is_refused_before_anything_runs(engine: Engine, grammar: Any, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        events_of(engine, request(grammar=grammar, ignore_eos=False))


def test_a_backend_that_keeps_no_forms_refuses_them(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._backend, "keeps_forms", False)
    with pytest.raises(FieldError, match="^grammar: .*this engine's backend does not keep answers to a form"):
        events_of(engine, bound("choice"))


def test_what_manifests_say_of_backends_is_so() -> None:
    found: dict[str, Any] = {"torch_cpu": TorchCpu, "cuda": Cuda, "tensorrt_rtx": Lowered}
    assert set(found) == set(backends._MODULES)
    assert {name for name, backend in found.items() if backend.keeps_forms} == backends.KEEP_FORMS
