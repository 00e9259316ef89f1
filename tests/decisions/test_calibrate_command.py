"""``diffgemma-engine calibrate``: from labelled questions to a file in the bundle, which answers then say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from trtllm_build import load_engine
from trtllm_build.cli import main
from trtllm_build.decisions.calibration import FILE
from trtllm_build.decisions.decide import decide

PREDICATE = {"type": "predicate", "instructions": "It is red."}
CHOICE = {"type": "choice", "instructions": "Which?", "choices": [{"value": "true"}, {"value": True}]}


def lines(count: int) -> list[dict[str, Any]]:
    found = []
    for i in range(count):
        found.append({"input": f"red {i}", "question": PREDICATE, "answer": i % 3 == 0})
        found.append({"input": f"lamp {i}", "question": CHOICE, "answer": [True, "true"][i % 2]})
    return found


def written(path: Path, found: list[Any]) -> Path:
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in found) + "\n")
    return path


def test_a_bundle_is_calibrated(demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = shutil.copytree(demo_bundle, tmp_path / "engine")
    file, picture = written(tmp_path / "labelled.jsonl", lines(20)), tmp_path / "reliability.png"
    main(["calibrate", str(bundle), "--questions", str(file), "--png", str(picture), "--json"])
    said = capsys.readouterr()
    stored = json.loads((bundle / FILE).read_text())
    assert json.loads(said.out) == stored
    assert set(stored["temperatures"]) == set(stored["measured"]) == {"predicate", "choice"}
    assert stored["measured"]["choice"]["fitted_on"] == stored["measured"]["choice"]["measured_on"] == 10
    assert "calibration error" in said.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    for folder, calibrated in ((demo_bundle, False), (bundle, True)):
        engine = load_engine(folder)  # the file is no part of what the bundle's hash vouches for
        answers = decide(engine, "red", [PREDICATE, CHOICE])
        engine.close()
        assert [a["diagnostics"]["calibrated"] for a in answers] == [calibrated] * 2


@pytest.mark.parametrize(
    ("found", "field"),
    [
        ([], "labelled.jsonl: 'fewer than two"),
        (["{"], "labelled.jsonl:1: "),
        ([lines(1)[0], {"input": "a"}], "labelled.jsonl:2: "),
        ([{"input": "a", "question": {"type": "x"}, "answer": True}], r"labelled.jsonl:1: question\[0\].type: "),
        ([{"input": "a", "question": PREDICATE, "answer": "yes"}], "labelled.jsonl:1: answer: "),
        ([{"input": "a", "question": PREDICATE, "answer": 1}], "labelled.jsonl:1: answer: "),
        (["\ud800"], ""),
    ],
)
def test_what_is_no_labelled_question_is_named(
    demo_bundle: Path, tmp_path: Path, found: list[Any], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "labelled.jsonl"
    if found == ["\ud800"]:
        path.write_bytes(b"\xff\n")
    else:
        written(path, found)
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", str(demo_bundle), "--questions", str(path)])
    assert ended.value.code == 2
    assert field.replace("\\", "") in capsys.readouterr().err
    assert not (demo_bundle / FILE).exists()
