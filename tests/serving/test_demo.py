"""`make demo`: what it goes on with, what it asks, what it draws."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_diffgemma.demo_task import Conversation, judged
from nemo_diffgemma.training.config import load_config
from tests.support import text_checkpoint
from triton_repo.demo import evaluate, training
from triton_repo.demo.evaluate import Answer
from triton_repo.demo.examples import asked, blocks, prompts
from triton_repo.demo.picture import entropy_by_step, settled, shown_rows, write_picture
from triton_repo.demo.trace import Canvas, Step, to_be_traced, trace
from trtllm_build import load_engine

BLOCK = """# A document
```python
ask("x")
```
- in a list:
  ```
  make chat PROMPT="12 km in m"
  ```
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `make demo` runs, with a checkpoint in place."""
    monkeypatch.chdir(tmp_path)
    text_checkpoint(training.ROOT)
    (training.ROOT / "model").rename(training.CHECKPOINT)
    return tmp_path


def test_a_checkpoint_is_up_to_date_when_this_code_trained_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not training.is_trained()
    training.finish()
    assert training.is_trained()
    weights = next(training.CHECKPOINT.glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    assert not training.is_trained()  # cut off
    weights.write_bytes(whole[:-4] + b"\x01\x02\x03\x04")
    assert not training.is_trained()  # trained by something else since
    weights.write_bytes(whole)
    assert training.is_trained()
    monkeypatch.setattr(training, "code", lambda: "another")
    assert not training.is_trained()


def test_an_interrupted_run_goes_on_when_the_same_code_began_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert training.begin()[-1] == "resume=false"
    assert training.begin()[-1] == "resume=auto"
    monkeypatch.setattr(training, "code", lambda: "another")
    assert training.begin()[-1] == "resume=false"
    assert training.begin()[-1] == "resume=auto"
    (training.ROOT / "begun_by.json").write_text("{")
    assert training.begin()[-1] == "resume=false"


def test_the_number_of_parameters_is_that_of_the_config() -> None:
    from nemo_diffgemma.training.network import build_network

    counted = sum(parameter.numel() for parameter in build_network(load_config([]).arch, True).parameters())
    assert training.parameters() == pytest.approx(counted, rel=1e-3)  # training does not touch layers' scalars


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_to_the_stage_and_waited_for(tmp_path: Path, number: signal.Signals) -> None:
    """As training needs it: the stage writes something before it ends."""
    (tmp_path / "stage.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(number, frame):\n"
        "    time.sleep(0.5)\n"
        "    pathlib.Path('saved').write_text(str(number))\n"
        "    sys.exit(128 + number)\n"
        "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(number, stop)\n"
        "pathlib.Path('begun').touch()\n"
        "time.sleep(60)\n"
    )
    code = "from triton_repo.demo.console import *; stop_on_signals()\ntry: run('stage')\nexcept Stopped: sys.exit(7)"
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{tmp_path}"}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment) as process:
        while not (tmp_path / "begun").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(30) == 7
    assert (tmp_path / "saved").read_text() == str(int(number))


def test_blocks_and_prompts_of_a_document(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(BLOCK)
    (tmp_path / "Makefile").write_text("PROMPT ?= Who?\n")
    found = [(b.document, b.line, b.language, b.text.strip()) for b in blocks(tmp_path)]
    assert found == [
        ("README.md", 3, "python", 'ask("x")'),
        ("README.md", 7, "", 'make chat PROMPT="12 km in m"'),
    ]
    assert prompts(tmp_path) == {"12 km in m": "README.md", "Who?": "Makefile"}
    assert prompts(tmp_path / "nothing") == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"role": "user", "content": "a \\"b\\" \\u00e9"}', ['a "b" é']),
        ('diffgemma "one"\ndiffgemma -- "two"', ["one", "two"]),
        ('diffgemma-engine build "x"', []),
        ('"content": text', []),
    ],
)
def test_what_is_asked(text: str, found: list[str]) -> None:
    assert asked(text) == found


def answers(*steps: tuple[int, ...], tokens: int = 12) -> list[Answer]:
    return [Answer("", s, tokens, 0.1) for s in steps]


def test_the_traced_answer_is_a_right_one_of_one_canvas_and_many_steps() -> None:
    found = answers((3,), (9,), (14,), (16, 2), (40,))
    assert to_be_traced([True] * 5, found) == 2
    assert to_be_traced([True, True, False, True, True], found) == 1
    assert to_be_traced([False] * 5, found) == 2
    short = [*answers((3,)), *answers((9,), tokens=2)]
    assert to_be_traced([True, True], short) == 0


def test_figures_by_kind_count_every_right_answer() -> None:
    said = judged(40, seed=5, unseen=False)
    given = [Answer(c.answer if i % 2 else "wrong", (2, 4), 6, 0.5) for i, c in enumerate(said)]
    found = evaluate.figures(said, given, seconds=2.0)
    assert found["exact_match"] == 0.5
    assert found["steps_per_canvas_mean"] == 3
    assert found["tokens_per_step_mean"] == 1
    assert found["tokens_per_second"] == 120
    assert sum(kind["questions"] for kind in found["by_kind"].values()) == 40
    right = sum(kind["questions"] * kind["exact_match"] for kind in found["by_kind"].values())
    assert right == pytest.approx(20)
    assert len(found["wrong"]) == 20


def test_what_transformers_was_asked_is_asked_again_when_anything_of_it_changes() -> None:
    said: list[Conversation] = judged(3, seed=5, unseen=False)
    keys = {evaluate.transformers_key(*given) for given in (("a", said, 64), ("b", said, 64), ("a", said, 65))}
    keys |= {evaluate.transformers_key("a", said[:2], 64)}
    assert len(keys) == 4
    assert evaluate.transformers_key("a", judged(3, seed=5, unseen=False), 64) in keys


def test_a_trace_ends_in_the_engine_s_own_answer(demo_bundle: Path) -> None:
    messages = [{"role": "user", "content": "12 km in m"}]
    canvas = trace(demo_bundle, messages, max_tokens=20, seed=3)
    engine = load_engine(demo_bundle)
    try:
        assert engine.tokenizer is not None
        ids = engine.tokenizer.chat(messages)
        (found,) = engine.generate([ids], max_tokens=20, seed=3)
        decoded = [engine.tokenizer.decode([t], skip_special_tokens=False) for t in found.token_ids]
    finally:
        engine.close()
    assert len(canvas.steps) == found.denoising_steps[0]
    shown = min(len(decoded), len(canvas.steps[-1].tokens))
    assert list(canvas.steps[-1].tokens[:shown]) == decoded[:shown]
    assert shown > 0
    for step, mean in zip(canvas.steps, found.entropies[0], strict=True):
        assert len(step.entropies) == len(step.tokens)
        if len(step.entropies) == canvas.length:
            assert sum(step.entropies) / canvas.length == pytest.approx(mean, rel=1e-4)


CANVAS = Canvas(
    "What costs $5?",
    32,
    (
        Step(("a", " $5", "x"), (2.0, 0.5, 1.0)),
        Step(("b", " $5", "y"), (1.0, 0.1, 1.0)),
        Step(("b", " $5", "y"), (0.0, 0.0, 0.0)),
    ),
)


def test_a_token_is_settled_once_it_does_not_change_any_more() -> None:
    assert settled(CANVAS) == [[False, True, False], [True, True, True], [True, True, True]]


def test_a_picture_has_room_for_sixteen_steps() -> None:
    assert shown_rows(3) == [0, 1, 2]
    rows = shown_rows(48)
    assert len(rows) == 16
    assert (rows[0], rows[-1]) == (0, 47)
    assert rows == sorted(set(rows))


def test_entropy_by_step_is_the_mean_of_what_still_runs() -> None:
    assert entropy_by_step([(1.0, 0.5), (3.0,)]) == [2.0, 0.5]


@pytest.mark.parametrize("tokens", [3, 400])
def test_the_picture(tmp_path: Path, tokens: int) -> None:
    """Also of a canvas that is wider than the page."""
    from matplotlib import image

    step = Step(tuple(f"word{i}" for i in range(tokens)), tuple(i / 100 for i in range(tokens)))
    canvas = CANVAS if tokens == 3 else Canvas("?", tokens, (step, step))
    row = {"step": 1, "diffusion": 1.0, "autoregressive": 2.0}
    curve = {"losses": [row, row | {"step": 2}], "validation": [{"step": 2, "loss": 0.5}]}
    kinds = {"a kind": {"steps_per_canvas_mean": 2.0}, "another": {"steps_per_canvas_mean": 6.5}}
    write_picture(canvas, curve, [1.0, 0.0], kinds, tmp_path / "report.png")
    pixels = image.imread(tmp_path / "report.png")
    assert pixels.shape[1] == 1680
    assert len({tuple(p) for p in pixels.reshape(-1, pixels.shape[2])[::97].round(2).tolist()}) > 20
