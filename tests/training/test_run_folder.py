"""A run's folder is ours or refused; what makes another experiment is refused by name, the rest is honoured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.training.checkpoint_files import checkpoint_path, newest_step, put_checkpoint
from nemo_diffgemma.training.config import load_config
from nemo_diffgemma.training.prepare import prepare
from nemo_diffgemma.training.run_folder import held
from tests.training.runs import MODEL

TALK = {"messages": [{"role": "user", "content": "red chair"}, {"role": "assistant", "content": "green table"}]}


@pytest.fixture
def options(tmp_path_factory: pytest.TempPathFactory, text_checkpoint: Path) -> list[str]:
    """Eight conversations, and what trains the tiny model on them."""
    data = tmp_path_factory.mktemp("data") / "data.jsonl"
    data.write_text(8 * (json.dumps(TALK) + "\n"))
    tokenizer = f"data.tokenizer={text_checkpoint}"
    return [*MODEL, "model.vocab_size=300", "data=chat", f"data.train={data}", "data.max_tokens=99", tokenizer]


def begin(run: Path, *overrides: str) -> None:
    """What the first process does before NeMo is imported."""
    config = load_config([f"run={run}", *overrides])
    with held(config.run):
        prepare(config)


def keep(run: Path, step: int) -> None:
    """A training checkpoint, as far as anything but Lightning can tell."""
    written = run / "checkpoints" / "written"
    written.write_text("weights")
    put_checkpoint(written, checkpoint_path(run, step))


@pytest.fixture
def used(tmp_path: Path, options: list[str]) -> Path:
    """A run's folder with a training checkpoint of step 6, as far as anything but Lightning can tell."""
    run = tmp_path / "run"
    begin(run, *options, "optim.steps=12")
    (run / "checkpoints").mkdir()
    keep(run, 6)
    (run / "nemo").mkdir()
    return run


@pytest.mark.parametrize("name", ["notes.md", ".hidden", "checkpoints"])
def test_a_folder_with_anything_else_is_refused_and_stays_as_it_was(
    name: str, tmp_path: Path, options: list[str]
) -> None:
    (tmp_path / name).mkdir() if name == "checkpoints" else (tmp_path / name).write_text("mine")
    with pytest.raises(
        FieldError, match=rf"^run: '{tmp_path} holds {name}'.*a new or empty folder.*run={tmp_path}/run"
    ):
        begin(tmp_path, *options)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("text", ["{}", '{"name": "my experiment"}', "[1]", "mine"])
def test_a_folder_whose_run_json_is_not_ours_is_refused(text: str, tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FieldError, match=rf"^run: '{tmp_path} holds checkpoints, run.json'"):
        begin(tmp_path, *options)
    assert (tmp_path / "run.json").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "run.json"]


def test_a_folder_that_others_use_by_now_stays(tmp_path: Path) -> None:
    with held(tmp_path / "sweep" / "1"):
        (tmp_path / "sweep" / "2").mkdir()
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["2"]


@pytest.mark.parametrize("inside", ["checkpoints", "nemo/x", "data/tokenizer", "training.json", "run.json", "run_0"])
def test_an_output_among_the_runs_own_files_is_refused(inside: str, tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(FieldError, match=r"^output: .*a folder apart from .*which the run itself writes"):
        load_config([f"run={tmp_path}", *options, f"output={tmp_path / inside}"])


def test_a_file_in_its_place_is_refused(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(FieldError, match=r"^run: .*a folder, or a path where nothing is"):
        begin(tmp_path / "run", *options)


@pytest.mark.parametrize("field", ["run", "output"])
@pytest.mark.parametrize("value", ["", "' '", "null"])
def test_an_empty_path_is_refused(field: str, value: str) -> None:
    with pytest.raises(FieldError, match=rf"^{field}: .*a path; fix: pass {field}=PATH"):
        load_config([f"{field}={value}"])


def test_a_mistake_found_late_leaves_no_folder(tmp_path: Path, options: list[str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"messages": 3}\n')
    with pytest.raises(FieldError, match="messages"):
        begin(tmp_path / "deep" / "down" / "run", *options, f"data.train={data}")
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize("overrides", [["data.batch=9"], ["init_from={base}", "data.tokenizer={base}"]])
def test_a_refusal_moves_nothing_and_leaves_nothing(
    overrides: list[str], used: Path, options: list[str], tmp_path: Path, text_checkpoint: Path
) -> None:
    """Also one that is found in the last tensor of what a run is to begin with."""
    base = shutil.copytree(text_checkpoint, tmp_path / "base")
    (shard,) = base.glob("*.safetensors")
    tensors = load_file(shard)
    tensors[max(tensors)][0] = float("nan")
    save_file(tensors, shard, metadata={"format": "pt"})
    given = [o for o in options if not o.startswith(("model.", "data.tokenizer"))] if len(overrides) > 1 else options
    given += [o.format(base=base) for o in overrides]
    before = sorted(used.rglob("*"))
    with pytest.raises(FieldError, match=r"^(data.batch|checkpoint:)"):
        begin(used, *given, "resume=false")
    assert sorted(used.rglob("*")) == before
    with pytest.raises(FieldError, match=r"^(data.batch|checkpoint:)"):
        begin(tmp_path / "deep" / "new", *given)
    assert not (tmp_path / "deep").exists()


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        held(tmp_path / "run"),
        pytest.raises(FieldError, match=r"^run: .*no other run is using now.*wait for it, or pass run=DIR"),
        held(tmp_path / "run"),
    ):
        pass


def test_a_new_run_moves_only_the_earlier_ones_files(used: Path, options: list[str]) -> None:
    (used / "notes.md").write_text("mine, put here after the run began")
    begin(used, *options)
    begin(used, *options)
    assert sorted(path.name for path in used.iterdir()) == ["notes.md", "run.json", "run_0"]
    assert sorted(path.name for path in (used / "run_0").iterdir()) == ["checkpoints", "nemo", "run.json"]
    assert newest_step(used) is None


def test_files_of_somebody_elses_in_its_folders_stay(used: Path, options: list[str]) -> None:
    mine = [used / "nemo" / "my_notes.txt", used / "checkpoints" / "keep_this.ckpt"]
    for path in mine:
        path.write_text("mine")
    (used / "nemo" / "hparams.yaml").write_text("a run's")
    begin(used, *options)
    assert [path.read_text() for path in mine] == ["mine", "mine"]
    assert sorted(path.name for path in (used / "checkpoints").iterdir()) == ["keep_this.ckpt"]
    aside = used / "run_0"
    assert sorted(path.name for path in (aside / "checkpoints").iterdir()) == ["step=6.ckpt", "step=6.json"]
    assert [path.name for path in (aside / "nemo").iterdir()] == ["hparams.yaml"]


def test_a_lock_that_is_somebody_elses_stays(tmp_path: Path, options: list[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").write_text("precious notes")
    with pytest.raises(FieldError, match=r"^run: .*holds \.lock.*nothing was changed"):
        begin(run, *options)
    assert (run / ".lock").read_text() == "precious notes"
    (run / ".lock").write_text("")  # what a killed run leaves
    begin(run, *options)
    assert not (run / ".lock").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seed=1"], r"^seed: 1 .*allowed: 0 as when"),
        (["model.num_experts=2"], r"^model: .*the weights have its shapes"),
        (["data.batch=4"], r"^data.batch: 4 .*allowed: 8 as when"),
        (["parallel=fsdp2", "parallel.devices=2"], r"^parallel.name: 'fsdp2'.*single as when.*differ in form"),
        (["optim.train_router=false"], r"^optim.train_router: False .*the optimizer's state"),
        (["optim.steps=5"], r"^optim.steps: 5 .*6 or more.*optim.steps=6"),
    ],
)
@pytest.mark.parametrize("resume", ["true", "auto"])
def test_another_experiment_is_refused_by_name(
    overrides: Sequence[str], said: str, resume: str, used: Path, options: list[str]
) -> None:
    before = (used / "run.json").read_text()
    with pytest.raises(FieldError, match=said):
        begin(used, *options, "optim.steps=12", f"resume={resume}", *overrides)
    assert (used / "run.json").read_text() == before
    assert newest_step(used) == 6


def test_other_data_is_refused_and_the_same_data_elsewhere_is_not(
    used: Path, options: list[str], tmp_path: Path
) -> None:
    data = tmp_path / "moved.jsonl"
    data.write_text(8 * (json.dumps(TALK) + "\n"))
    begin(used, *options, f"data.train={data}", "optim.steps=12", "resume=true")
    data.write_text(9 * (json.dumps(TALK) + "\n"))
    with pytest.raises(FieldError, match=r"^data.train: .*the same as when"):
        begin(used, *options, f"data.train={data}", "optim.steps=12", "resume=true")


def test_what_can_change_is_said(used: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    begin(used, *options, "optim.steps=20", "optim.lr=1e-3", "optim.betas=[0.8,0.9]", "threads=2", "resume=auto")
    assert capsys.readouterr().out.splitlines() == [
        "data.train: 8 conversations, messages form",
        "resume   optim.lr: 0.003 -> 0.001",
        "resume   optim.betas: [0.8, 0.95] -> [0.8, 0.9]",
        "resume   optim.steps: 12 -> 20",
        "resume   optim.schedule_steps: 12 -> 20",
        f"resume   step 6 of 20, from {used}/checkpoints/step=6.ckpt",
    ]


def test_resume_true_wants_a_checkpoint_and_auto_does_not(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(FieldError, match=r"^resume: True .*a training checkpoint in .*resume=auto"):
        begin(tmp_path / "run", *options, "resume=true")
    assert not (tmp_path / "run").exists()
    begin(tmp_path / "run", *options, "resume=auto")
    assert (tmp_path / "run" / "run.json").is_file()


def test_what_a_killed_run_left_half_written_is_removed(used: Path, options: list[str]) -> None:
    (used / "checkpoints" / ".step=8.ckpt.0123456789ab.partial").write_text("half")
    (used / "checkpoints" / ".step=9.ckpt.shards.partial").mkdir()
    keep(used, 9)
    (used / "checkpoints" / "step=9.ckpt").unlink()
    begin(used, *options, "optim.steps=12", "resume=auto")
    assert sorted(path.name for path in (used / "checkpoints").iterdir()) == ["step=6.ckpt", "step=6.json"]


@pytest.mark.parametrize("output", ["runs", ".", "runs/x", "base", "base/ft"])
def test_an_output_that_would_swallow_another_folder_is_refused(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_checkpoint: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(text_checkpoint)
    (tmp_path / "d.jsonl").write_text("{}")
    options = ["data=chat", "data.train=d.jsonl", "data.max_tokens=99", "init_from=base", "run=runs/x"]
    with pytest.raises(FieldError, match=r"^output: "):
        load_config([*options, f"output={output}"])


def test_an_output_that_holds_the_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_checkpoint: Path
) -> None:
    """An earlier output holds conversations where that was asked for; to train on them is no reason to lose them."""
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    for name in ("d.jsonl", "out/held_out.jsonl"):
        Path(name).write_text("{}")
    options = ["data=chat", "data.max_tokens=99", f"init_from={text_checkpoint}", "run=run", "output=out"]
    with pytest.raises(FieldError, match=r"^data.train: 'out/held_out.jsonl' .*apart from output=out"):
        load_config([*options, "data.train=out/held_out.jsonl"])
    with pytest.raises(FieldError, match=r"^data.validation: 'out/held_out.jsonl' .*apart from output=out"):
        load_config([*options, "data.train=d.jsonl", "data.validation=[out/held_out.jsonl]"])
    with pytest.raises(FieldError, match=r"^data.train: None .*allowed: paths"):
        load_config([*options, "data.train=[null]"])
