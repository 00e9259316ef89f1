"""What a run learns from: files of the demo task, written once; and a tokenizer that fits the model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.training import corpus
from nemo_diffgemma.training.config import load_config
from nemo_diffgemma.training.corpus import load_corpus
from nemo_diffgemma.training.settings import TrainConfig
from tests.model.templates import tokenizer
from tests.support import small_architecture


def demo(run: Path, *overrides: str) -> TrainConfig:
    return load_config([f"run={run}", "data.generate.examples=1500", "data.generate.held_out=12", *overrides])


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "data").rglob("*") if path.is_file()}


def test_the_demo_task_is_written_once_and_again_when_it_changes(tmp_path: Path) -> None:
    said: list[str] = []
    corpus = load_corpus(demo(tmp_path), said.append)
    train, validation = corpus.train, corpus.validation
    assert validation is not None
    assert (len(train.examples), len(train.lines), len(validation.lines), said) == (1500, 64, 12, [])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert load_corpus(demo(tmp_path), None).train.examples == train.examples
    assert before == {path: path.stat().st_mtime_ns for path in before}
    other = load_corpus(demo(tmp_path, "data.generate.seed=7"), None).train
    assert other.examples != train.examples


def test_processes_that_prepare_at_once_get_the_same(tmp_path: Path) -> None:
    """One writes, the others wait: none reads half a file."""
    config = demo(tmp_path)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: load_corpus(config, None), range(3)))
    assert found[0] == found[1] == found[2]
    assert len(found[0].train.examples) == 1500


def test_a_file_of_the_users_is_not_replaced_by_the_demo_task(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text("mine\n")
    with pytest.raises(FieldError, match=r"^data.train: '.*mine.jsonl'.*what the demo task wrote.*data.generate=null"):
        load_corpus(demo(tmp_path / "run", f"data.train={mine}"), None)
    assert mine.read_text() == "mine\n"


def test_a_file_that_was_changed_since_is_not_replaced(tmp_path: Path) -> None:
    load_corpus(demo(tmp_path), None)
    path = tmp_path / "data/train.jsonl"
    path.write_text(path.read_text() + "mine\n")
    before = contents(tmp_path)
    with pytest.raises(FieldError, match=r"^data.train: .*train.jsonl'.*what the demo task wrote there"):
        load_corpus(demo(tmp_path), None)
    assert contents(tmp_path) == before


def test_what_a_killed_run_left_half_written_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_corpus(demo(tmp_path / "one"), None)

    def killed(train: Path, _held_out: Path, tokens: Path, *_rest: object, **_sizes: object) -> None:
        for half in (train, tokens / "tokenizer.json"):
            half.parent.mkdir(parents=True, exist_ok=True)
            half.write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "write_demo_data", killed)
        with pytest.raises(KeyboardInterrupt):
            load_corpus(demo(tmp_path / "two"), None)
    load_corpus(demo(tmp_path / "two"), None)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("data/train.jsonl", "data.train"),
        ("data/held_out.jsonl", "data.validation"),
        ("data/tokenizer/tokenizer_config.json", "data.tokenizer"),
        ("data/tokenizer/special_tokens_map.json", "data.tokenizer"),
    ],
)
def test_what_lies_in_the_runs_folder_and_is_not_the_demo_tasks_stays(name: str, key: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(FieldError, match=rf"^{key}: .*nothing, or what the demo task wrote there"):
        load_corpus(demo(tmp_path), None)
    assert contents(tmp_path) == {Path(name).name: b"mine"}


def test_one_file_is_not_trained_and_validated_on(tmp_path: Path) -> None:
    same = [f"data.{key}={tmp_path / 'same.jsonl'}" for key in ("train", "validation")]
    with pytest.raises(FieldError, match=r"^data.validation: .*another file than data.train"):
        load_corpus(demo(tmp_path, *same), None)
    assert not (tmp_path / "same.jsonl").exists()


def test_own_files_are_read_once_and_said_in_a_line_each(tmp_path: Path, text_checkpoint: Path) -> None:
    talk = '{"prompt": "red", "completion": "blue"}\n'
    (tmp_path / "a b.jsonl").write_text(talk * 3)
    (tmp_path / "v.jsonl").write_text(talk)
    overrides = [f"data.train={tmp_path / 'a b.jsonl'}", f"data.validation={tmp_path / 'v.jsonl'}"]
    options = ["data=chat", f"init_from={text_checkpoint}", "data.max_tokens=200", f"run={tmp_path / 'run'}"]
    said: list[str] = []
    corpus = load_corpus(load_config([*options, *overrides]), said.append)
    train, validation = corpus.train, corpus.validation
    assert (len(train.examples), validation is not None and len(validation.examples)) == (3, 1)
    assert said == [
        "data.train: 3 conversations, prompt_completion form",
        "data.validation: 1 conversation, prompt_completion form",
    ]
    assert load_corpus(load_config([*options, overrides[0]]), None).validation is None


def test_the_end_of_a_turn_has_to_be_an_end_of_the_models(tmp_path: Path) -> None:
    tokens = tokenizer(tmp_path)
    corpus.check_tokenizer(tokens, small_architecture(eos_token_ids=(1, 5)))
    said = r"^data.tokenizer: \"'<turn\|>' \(token 5\) ends a turn.*eos_token_ids \[1\].*or add 5 to eos_token_ids"
    with pytest.raises(FieldError, match=said):
        corpus.check_tokenizer(tokens, small_architecture(eos_token_ids=(1,)))


def test_a_run_that_was_moved_goes_on_with_its_files(tmp_path: Path) -> None:
    load_corpus(demo(tmp_path / "one"), None)
    (tmp_path / "one").rename(tmp_path / "two")
    before = contents(tmp_path / "two")
    load_corpus(demo(tmp_path / "two"), None)
    assert contents(tmp_path / "two") == before
