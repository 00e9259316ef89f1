"""Files of conversations that a build asks are looked at before anything is quantised."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nemo_diffgemma.checkpoint import HELD_OUT, Checkpoint
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.questions import read_questions
from trtllm_build.gates.questions import CALIBRATION_QUESTIONS, check_questions
from trtllm_build.pipeline import build
from trtllm_build.plan import make_plan

GOOD = ("red chair", "blue")


def write(path: Path, *talks: tuple[str, str]) -> Path:
    messages = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in talks]
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in messages), encoding="utf-8")
    return path


def check(checkpoint: Path, *given: str, context: int = 128) -> int:
    limits = [f"gpu.limits.context={context}", "largest_loss=1"]
    plan = make_plan(["gpu=h100", "precision=fp8_static", f"checkpoint={checkpoint}", *limits, *given])
    return check_questions(plan, Checkpoint(checkpoint))


@pytest.mark.parametrize("key", ["calibration", "held_out"])
@pytest.mark.parametrize(
    ("talk", "counted"),
    [
        (("red " * 80, "blue"), r"\(\d{3} asked, 16 for the answer"),
        (("red", "blue " * 80), r"\(\d{2} asked, \d{3} for the answer"),
    ],
    ids=["question", "answer"],
)
def test_one_too_long_is_named_before_anything_is_built(
    key: str, talk: tuple[str, str], counted: str, text_checkpoint: Path, tmp_path: Path
) -> None:
    good, long = write(tmp_path / "good.jsonl", GOOD), write(tmp_path / "long.jsonl", GOOD, talk, GOOD, talk)
    files = {"calibration": good, "held_out": good} | {key: long}
    given = [f"{name}={path}" for name, path in files.items()]
    said = (
        rf"^{key}: {long}:2: messages: '\d+ tokens {counted}.*at most 128, .*fix: pass gpu.limits.context=\d+, or pass "
    )
    said += rf"{key}=FILE without it \(so it is with 1 more: {long}:4\)$"
    where = [f"out={tmp_path / 'out'}", f"checkpoint={text_checkpoint}", "gpu.limits.context=128"]
    noted: list[str] = []
    with pytest.raises(FieldError, match=said):
        build(make_plan(["gpu=h100", "precision=fp8_static", *where, *given]), noted.append)
    assert not [line for line in noted if not line.startswith("import")]
    assert not list(tmp_path.glob(".out*partial"))


def test_each_needs_room_for_its_own_answer_alone(text_checkpoint: Path, tmp_path: Path) -> None:
    """As in training: a long question and another one's long answer need not fit together."""
    file = write(tmp_path / "x.jsonl", ("red " * 40, "blue"), ("red", "blue " * 40))
    assert 96 < check(text_checkpoint, f"held_out={file}", f"calibration={file}") <= 128


def test_those_that_are_not_asked_may_be_long_but_not_broken(text_checkpoint: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", *[GOOD] * CALIBRATION_QUESTIONS, ("red " * 150, "blue"))
    good = write(tmp_path / "good.jsonl", GOOD)
    assert check(text_checkpoint, f"calibration={file}", f"held_out={good}") < 128
    with file.open("a") as more:
        more.write("{}\n")
    with pytest.raises(FieldError, match=rf"{file}:{CALIBRATION_QUESTIONS + 2}: messages: None"):
        check(text_checkpoint, f"calibration={file}", f"held_out={good}")


@pytest.mark.parametrize("key", ["calibration", "held_out"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("\n \n", "{key}: .*x.jsonl'.*at least one conversation"),
        ("[1]\n", "{key}: .*x.jsonl is one JSON array"),
        ('{"text": "a"}\n', r"x.jsonl:1: \['text'\].*fields of one form"),
    ],
)
def test_what_training_refuses_is_refused(
    key: str, content: str, said: str, text_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    files = dict.fromkeys(("calibration", "held_out"), write(tmp_path / "good.jsonl", GOOD)) | {
        key: tmp_path / "x.jsonl"
    }
    with pytest.raises(FieldError, match=said.format(key=key)):
        check(text_checkpoint, *(f"{name}={path}" for name, path in files.items()))


@pytest.mark.parametrize(
    "given", ["{folder}/*.jsonl", "[{folder}/a.jsonl,{folder}/b.jsonl]", "{folder}", "{folder}/no"]
)
def test_one_file_is_asked_for(given: str, text_checkpoint: Path, tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", GOOD)
    with pytest.raises(FieldError, match=r"^held_out: .*a JSONL file of conversations.*pass held_out=FILE"):
        check(text_checkpoint, f"calibration={tmp_path}/a.jsonl", f"held_out={given.format(folder=tmp_path)}")


def test_what_the_template_refuses_is_named(text_checkpoint: Path, tmp_path: Path) -> None:
    model, good = tmp_path / "model", write(tmp_path / "good.jsonl", GOOD)
    shutil.copytree(text_checkpoint, model)
    template = model / "chat_template.jinja"
    strict = "{% if 'lamp' in messages[0].content %}{{ raise_exception('no lamps') }}{% endif %}"
    template.write_text(strict + template.read_text())
    file = write(tmp_path / "x.jsonl", GOOD, ("a lamp", "blue"))
    with pytest.raises(FieldError, match=rf"^held_out: {file}:2: messages: 'no lamps'.*what the chat template renders"):
        check(model, f"held_out={file}", f"calibration={good}")
    template.write_text("{{ '' }}")
    with pytest.raises(FieldError, match=rf"^calibration: {good}:1: messages: 'no tokens'"):
        check(model, f"held_out={good}", f"calibration={good}")


def test_calibration_without_a_tokenizer_is_refused_at_once(text_checkpoint: Path, tmp_path: Path) -> None:
    model, good = tmp_path / "model", write(tmp_path / "good.jsonl", GOOD)
    shutil.copytree(text_checkpoint, model)
    (model / "tokenizer.json").unlink()
    for path in Checkpoint(model).tokenizer_files:
        path.unlink()
    with pytest.raises(FieldError, match=r"^calibration: .*a model with a tokenizer"):
        check(model, f"calibration={good}", f"held_out={good}")


def test_forms_and_ends_of_lines_are_those_of_training(tmp_path: Path) -> None:
    records: list[Any] = [
        {"prompt": "red\u2028\x85", "completion": "blue"},
        {"instruction": "red", "output": "blue"},
        {"conversations": [{"from": "human", "value": "red"}, {"from": "gpt", "value": "blue"}]},
    ]
    for number, record in enumerate(records):
        file = tmp_path / f"{number}.jsonl"
        file.write_bytes(b"\xef\xbb\xbf" + json.dumps(record, ensure_ascii=False).encode() + b"\r\n\n \n")
        (question,) = read_questions(file, key="held_out")
        assert (question.answer, question.where) == ("blue", f"{file}:1")


def test_the_checkpoints_own_is_told_by_its_path(text_checkpoint: Path, tmp_path: Path) -> None:
    model, good = tmp_path / "model", write(tmp_path / "good.jsonl", GOOD)
    shutil.copytree(text_checkpoint, model)
    write(model / HELD_OUT, ("red " * 150, "blue"))
    with pytest.raises(FieldError, match=rf"^held_out: {model / HELD_OUT}:1: messages: .*pass held_out=FILE"):
        check(model, f"calibration={good}")
