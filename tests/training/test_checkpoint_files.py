"""A damaged training checkpoint is never resumed from: it is named, and the newest whole one goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.training.checkpoint_files import checkpoint_path, checkpoint_steps, damage, put_checkpoint
from nemo_diffgemma.training.config import load_config
from nemo_diffgemma.training.prepare import prepare
from nemo_diffgemma.training.run_folder import held
from tests.training.runs import MODEL

TALK = {"messages": [{"role": "user", "content": "red chair"}, {"role": "assistant", "content": "green table"}]}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


FILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:40]), "step=8.ckpt is damaged: 40 bytes, not 100"),
    "empty": (lambda p: p.write_bytes(b""), "step=8.ckpt is damaged: 0 bytes, not 100"),
    "a flipped bit": (_flip, "step=8.ckpt is damaged: other bytes"),
    "a folder in its place": (_to_folder, "step=8.ckpt is missing"),
    "without its list": (lambda p: p.with_suffix(".json").unlink(), "step=8.json, which lists its files, is missing"),
    "its list is damaged": (lambda p: p.with_suffix(".json").write_text("{"), "step=8.json, which lists its files"),
    "its list is of other things": (lambda p: p.with_suffix(".json").write_text('{"files": {"x": 1}}'), "x is missing"),
}
SHARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing shard": (lambda p: (p / "__1_0.distcp").unlink(), "step=8.ckpt/__1_0.distcp is missing"),
    "a truncated shard": (lambda p: (p / "__1_0.distcp").write_bytes(b"1"), "__1_0.distcp is damaged: 1 bytes, not 50"),
    "a flipped bit in a shard": (lambda p: _flip(p / "__0_0.distcp"), "__0_0.distcp is damaged: other bytes"),
    "a foreign file": (lambda p: (p / "notes.md").write_text("mine"), "step=8.ckpt/notes.md is not of it"),
    "a file in its place": (lambda p: (shutil.rmtree(p), p.write_text("mine")), "step=8.ckpt/.metadata is missing"),
}


def _keep(run: Path, step: int, sharded: bool) -> None:
    written = run / "checkpoints" / "written"
    if sharded:
        written.mkdir(parents=True)
        for name in ("__0_0.distcp", "__1_0.distcp", ".metadata"):
            (written / name).write_bytes(bytes(50))
    else:
        written.parent.mkdir(exist_ok=True)
        written.write_bytes(bytes(100))
    put_checkpoint(written, checkpoint_path(run, step))


@pytest.fixture
def options(tmp_path: Path, text_checkpoint: Path) -> list[str]:
    data = tmp_path / "data.jsonl"
    data.write_text(8 * (json.dumps(TALK) + "\n"))
    chat = ["data=chat", f"data.train={data}", "data.max_tokens=99", f"data.tokenizer={text_checkpoint}"]
    return [*MODEL, "model.vocab_size=300", *chat, "optim.steps=12", f"run={tmp_path / 'run'}"]


def _begin(options: list[str], *more: str) -> None:
    config = load_config([*options, *more])
    with held(config.run):
        prepare(config)


@pytest.mark.parametrize("kind", [*FILE, *SHARDS])
def test_what_is_damaged_is_named_and_skipped(
    kind: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm, said = (FILE | SHARDS)[kind]
    run, sharded = tmp_path / "run", kind in SHARDS
    _begin(options)
    for step in (4, 8):
        _keep(run, step, sharded)
    path = checkpoint_path(run, 8)
    assert damage(path) is None
    harm(path)
    assert said in str(damage(path))
    before = sorted(run.rglob("*"))
    with pytest.raises(FieldError) as refused:
        _begin(options, "resume=true")
    assert str(path) in str(refused.value)
    assert said in str(refused.value)
    assert refused.value.fix == "pass resume=auto, which goes on from step 4"
    assert sorted(run.rglob("*")) == before
    capsys.readouterr()
    _begin(options, "resume=auto")
    *_, skipped, going_on = capsys.readouterr().out.splitlines()
    assert skipped.startswith(f"resume   {path}: ")
    assert said in skipped
    assert skipped.endswith("; it is kept as step=8.ckpt.damaged-1")
    assert going_on == f"resume   step 4 of 12, from {checkpoint_path(run, 4)}"
    assert checkpoint_steps(run) == [4]
    _keep(run, 8, sharded)
    assert damage(path) is None
    assert path.with_name("step=8.ckpt.damaged-1").exists()


@pytest.mark.parametrize("resume", ["true", "auto"])
def test_when_none_is_whole_nothing_is_begun_anew(resume: str, options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    _begin(options)
    _keep(run, 4, sharded=False)
    _flip(checkpoint_path(run, 4))
    before = sorted(run.rglob("*"))
    with pytest.raises(FieldError, match=r"step=4.ckpt is damaged.*resume=false to begin anew"):
        _begin(options, f"resume={resume}")
    assert sorted(run.rglob("*")) == before
    _begin(options, "resume=false")
    assert (run / "run_0" / "checkpoints" / "step=4.ckpt").is_file()
