"""Reads: probabilities of labels, the same whatever runs beside them and whatever is cached."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.diffusion import draws
from nemo_diffgemma.errors import FieldError
from tests.runtime.engines import ENDLESS, Gate, events_of, request, without_times
from tests.support import random_architecture, random_checkpoint
from trtllm_build import Engine, load_engine
from trtllm_build.gates.reference import Reference
from trtllm_build.pipeline import build
from trtllm_build.plan import make_plan
from trtllm_build.runtime.read import ReadCanvas, Reading, ReadRequest
from trtllm_build.runtime.request import Block

TEXT = tuple(10 + i * 7 % 200 for i in range(40))
FIXED = (20, 21, 22, 1, 1, 1, 1)


def canvas(suffix: int, *labels: tuple[int, ...]) -> ReadCanvas:
    """One open position in the middle of fixed ones, after ``suffix`` tokens of its own."""
    found = labels or ((30, 31), (40,), (50,))
    return ReadCanvas(tuple(range(60, 60 + suffix)), (*FIXED[:3], None, *FIXED[3:]), (found,))


def events(engine: Engine, *requests: ReadRequest) -> list[list[Reading | Block]]:
    """All events of requests that run together."""
    found: list[list[Reading | Block]] = [[] for _ in requests]
    tickets = [engine.submit_read(r, e.append) for r, e in zip(requests, found, strict=True)]
    assert all(ticket.wait(60) for ticket in tickets)
    return found


def readings(found: list[Reading | Block]) -> list[Reading]:
    *rest, last = found
    assert isinstance(last, Block)
    assert last.finish_reason == "stop", last.error
    return [r for r in rest if isinstance(r, Reading)]


@pytest.fixture
def fresh(small: Callable[..., Engine]) -> Engine:
    return small()


@pytest.mark.parametrize("seed", range(6))
def test_probabilities_are_those_of_transformers_in_float32(seed: int, tmp_path: Path) -> None:
    """Prompts shorter and longer than the window, a question or none, several open positions, every sample."""
    arch = random_architecture(seed)
    checkpoint = random_checkpoint(tmp_path / "checkpoint", arch, seed)
    plan = make_plan(["gpu=cpu", "compile=false", f"checkpoint={checkpoint}", f"out={tmp_path / 'engine'}"])
    build(plan, lambda line: None)
    engine, reference = load_engine(tmp_path / "engine"), Reference(Checkpoint(checkpoint))
    g = torch.Generator().manual_seed(seed)
    for size in (1, arch.sliding_window, arch.sliding_window * 3 + 2):
        ids = torch.randint(arch.vocab_size, (size + 7 + arch.canvas_length,), generator=g).tolist()
        prompt, question, fixed = ids[:size], ids[size : size + 7], ids[size + 7 :]
        asked = ReadCanvas(tuple(question), (None, *fixed[1:-1], None), (((3, 4), (5,)), ((6,), (7, 9), (8,))))
        for canvases in ((asked,), (replace(asked, token_ids=()), asked)):
            (*_, found) = engine.read(prompt, canvases, seed=seed, samples=2)
            probabilities, masses = [], []
            for sample in range(2):
                noise = draws.uniforms(seed, 0, sample, draws.NOISE, len(fixed))
                noisy = draws.uniform_to_token(noise, arch.vocab_size)
                start = torch.tensor([noisy[0], *fixed[1:-1], noisy[-1]])
                logits = reference.logits(torch.tensor(prompt + question), start, None)
                for row, labels in zip((0, -1), asked.labels, strict=True):
                    p = torch.softmax(logits[row].double(), -1)
                    each = torch.stack([p[list(label)].sum() for label in labels])
                    probabilities.append(each / each.sum())
                    masses.append(each.sum())
            for slot in range(2):
                expected = (probabilities[slot] + probabilities[2 + slot]) / 2
                assert (torch.tensor(found[slot].probabilities) - expected).abs().max() <= 1e-4
                assert abs(found[slot].label_mass - (masses[slot] + masses[2 + slot]) / 2) <= 1e-4
    engine.close()


@pytest.mark.slow
def test_the_same_bits_in_any_company_with_a_cold_and_a_warm_cache(small: Callable[..., Engine]) -> None:
    """200 requests: batches of 1 to 8, a prompt of several pieces, generations before and beside."""
    long = tuple(10 + i * i % 250 for i in range(1300))
    asked = [ReadRequest(TEXT if i % 2 else long, tuple(canvas(i + j) for j in range(3)), seed=i) for i in range(4)]
    alone = {}
    for r in asked:
        engine = small(context=4096)
        alone[r] = readings(events(engine, r)[0])
        engine.close()
    engine = small(context=4096)
    events_of(engine, request(16, long[:600]), request(8, TEXT))  # caches that a read must not take for its own
    done = 0
    while done < 200:
        for batch in range(1, 9):
            together = [asked[(done + i) % len(asked)] for i in range(batch)]
            other = engine.submit(request(24, TEXT, done), lambda _event: None) if batch % 2 else None
            for r, found in zip(together, events(engine, *together), strict=True):
                assert readings(found) == alone[r]
            done += batch
            assert other is None or other.wait(60)
    assert engine.stats().reused_tokens > 50 * len(TEXT)


def test_questions_about_one_text_encode_it_once(fresh: Engine) -> None:
    asked = ReadRequest(TEXT, tuple(canvas(i % 5) for i in range(64)))
    (found,) = events(fresh, asked)
    assert len(readings(found)) == 64
    questions = sum(len(c.token_ids) for c in asked.canvases)
    assert fresh.stats().encoded_tokens == len(TEXT) + questions
    assert fresh.stats().denoising_steps == 64
    (again,) = events(fresh, asked)
    assert readings(again) == readings(found)
    assert fresh.stats().encoded_tokens == len(TEXT) + 2 * questions
    assert fresh.stats().reused_tokens == len(TEXT)


def test_an_answer_does_not_depend_on_the_questions_beside_it(fresh: Engine) -> None:
    first, second = canvas(3), canvas(30)
    assert fresh.read(TEXT, [first, second])[1] == fresh.read(TEXT, [second])[0]


def test_what_is_fixed_and_what_follows_the_noise(fresh: Engine) -> None:
    """Other fixed tokens give another answer; another seed gives other noise, and only where nothing is fixed."""
    open_, sure = canvas(4), replace(canvas(4), canvas_ids=(*FIXED[:3], None, *FIXED[3:-1], 9))
    (a,), (b,) = fresh.read(TEXT, [open_, sure])
    assert a != b
    seen: list[Any] = []
    read = fresh._backend.read
    fresh._backend.read = lambda steps: seen.extend(steps) or read(steps)  # type: ignore[method-assign, func-returns-value]
    fresh.read(TEXT, [open_], seed=5, samples=3)
    (step,) = seen
    assert step.canvases.shape == (3, 8)
    fixed = [i for i in range(8) if i != 3]
    assert (step.canvases[:, fixed] == torch.tensor(FIXED)).all()
    expected = [draws.uniform_to_token(draws.uniforms(5, 0, s, draws.NOISE, 8), 300)[3] for s in range(3)]
    assert step.canvases[:, 3].tolist() == expected


def test_samples_are_averaged(fresh: Engine) -> None:
    (one,), (several,) = (fresh.read(TEXT, [canvas(4)], samples=k)[0] for k in (1, 8))
    assert one.standard_errors is None
    assert several.standard_errors is not None
    assert any(several.standard_errors)
    assert sum(several.probabilities) == pytest.approx(1)
    assert 0 < several.label_mass < 1
    assert one != several


def test_a_canvas_under_way_goes_on_and_does_not_notice(fresh: Engine) -> None:
    (alone,) = events_of(fresh, request(24, TEXT))
    found: list[Any] = []
    ticket = fresh.submit(request(24, TEXT), found.append)
    fresh.read(TEXT, [canvas(i) for i in range(12)])
    assert ticket.wait(60)
    assert without_times(found) == without_times(alone)


@pytest.fixture
def busy(small: Callable[..., Engine]) -> Iterator[tuple[Engine, Gate]]:
    engine = small(slots=1, queue=1)
    yield engine, (gate := Gate(engine, sampler=ENDLESS))
    gate.ticket.cancel()
    gate.open()


def test_one_that_waits_is_cancelled_late_or_refused(busy: tuple[Engine, Gate]) -> None:
    engine, gate = busy
    found: list[Reading | Block] = []
    ticket = engine.submit_read(ReadRequest(TEXT, (canvas(1),), deadline=0.01), found.append)
    with pytest.raises(RuntimeError, match="requests wait"):
        engine.read(TEXT, [canvas(1)])
    gate.opened.set()
    assert ticket.wait(30)
    assert [e.finish_reason for e in found if isinstance(e, Block)] == ["deadline"]


def test_one_under_way_is_cancelled_between_two_questions(fresh: Engine) -> None:
    found: list[Reading | Block] = []
    first, go = threading.Event(), threading.Event()

    def hold(event: Reading | Block) -> None:
        found.append(event)
        first.set()
        assert go.wait(30)

    ticket = fresh.submit_read(ReadRequest(TEXT, (canvas(1), canvas(2), canvas(3))), hold)
    assert first.wait(30)
    ticket.cancel()
    go.set()
    assert ticket.wait(30)
    reading, block = found
    assert isinstance(reading, Reading)
    assert isinstance(block, Block)
    assert block.finish_reason == "cancelled"
    assert fresh.read(TEXT, [canvas(2)])  # the slot is free again


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt_ids": ()}, "prompt"),
        ({"canvases": ()}, "canvases"),
        ({"seed": -1}, "seed"),
        ({"samples": 0}, "samples"),
        ({"samples": 17}, "samples"),
        ({"deadline": 0.0}, "deadline"),
        ({"canvases": (canvas(1, (3,)),)}, r"canvases\[0\].labels"),
        ({"canvases": (canvas(1, (3, 4), (4,)),)}, r"canvases\[0\].labels"),
        ({"canvases": (canvas(1, (3,), ()),)}, r"canvases\[0\].labels"),
        ({"canvases": (ReadCanvas((), (1, 2), ()),)}, r"canvases\[0\].labels"),
        ({"canvases": (ReadCanvas((), (None, 2), ()),)}, r"canvases\[0\].labels"),
        ({"canvases": (canvas(1, (3,), (300,)),)}, "prompt"),
        ({"prompt_ids": (300,)}, "prompt"),
        ({"canvases": (ReadCanvas((), (None, *range(16)), (((1,), (2,)),)),)}, "canvases"),
        ({"prompt_ids": TEXT * 10}, "prompt"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(engine: Engine, changes: dict[str, Any], field: str) -> None:
    given: dict[str, Any] = {"prompt_ids": TEXT, "canvases": (canvas(1),)} | changes
    with pytest.raises(FieldError, match=f"^{field}"):
        engine.submit_read(ReadRequest(**given), lambda _event: None)


def test_a_backend_that_does_not_read_says_so(fresh: Engine) -> None:
    assert fresh.manifest["reads_labels"] is fresh._backend.reads_labels is True
    fresh._backend.reads_labels = False
    with pytest.raises(FieldError, match=r"engine:backend.*torch_cpu"):
        fresh.read(TEXT, [canvas(1)])
