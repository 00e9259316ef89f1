"""Training: folders, signals, resuming, disks, numbers, what travels with a model."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.cases.case import Case
from tests.support import random_checkpoint, small_architecture
from tests.training.runs import TINY

_TRAIN = f"diffgemma-train {' '.join(TINY)} data.generate.examples=1200"
_SIX = f"{_TRAIN} optim.steps=6 optim.schedule_steps=12 run=run"
_NOTES = {"README.md": "my project", "notes/ideas.txt": "mine", "train.jsonl": "{}"}
_FOREIGN = "cannot be used; allowed: a new or empty folder"


def _modes(folder: Path) -> None:
    for path in (folder / "run").rglob("*"):
        wanted = 0o755 if path.is_dir() else 0o644
        assert path.stat().st_mode & 0o777 == wanted, f"mode of {path.name}: {path.stat().st_mode & 0o777:o}"


def _nothing_private(folder: Path) -> None:
    for path in (folder / "run").rglob("*"):
        assert path.name != "git-info.log", "the commit was logged"
    assert not list((folder / "run" / "checkpoint").glob("*.jsonl")), "conversations lie in the model"


def _curve_is_json(folder: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in training.json")

    json.loads((folder / "run" / "training.json").read_text(), parse_constant=refuse)


def _newest(folder: Path) -> Path:
    return folder / "run" / "checkpoints" / "step=6.ckpt"


def _flip(folder: Path) -> None:
    data = bytearray(_newest(folder).read_bytes())
    data[len(data) // 2] ^= 1
    _newest(folder).write_bytes(data)


def _cut(folder: Path) -> None:
    _newest(folder).write_bytes(_newest(folder).read_bytes()[:9])


def _spoil(folder: Path) -> None:
    shutil.copytree(folder / "run" / "checkpoint", folder / "model")
    (shard,) = (folder / "model").glob("*.safetensors")
    tensors = load_file(shard)
    tensors[max(tensors)].fill_(float("nan"))
    save_file(tensors, shard, metadata={"format": "pt"})


def _six_steps(folder: Path) -> None:
    losses = json.loads((folder / "run" / "training.json").read_text())["losses"]
    assert [entry["step"] for entry in losses] == [1, 2, 3, 4, 5, 6], "steps are missing"


def _nothing_partial(folder: Path) -> None:
    assert not list(folder.rglob("*.partial")), "half of a file is left"


def _nothing_moved(folder: Path) -> None:
    assert not (folder / "run" / "run_0").exists(), "the earlier run was moved"


def _repository(folder: Path) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=b"]
    for command in (["init", "-q"], ["add", "README.md"], [*author, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    (folder / "README.md").write_text("a secret")


def _stopped(number: signal.Signals) -> Case:
    return Case(
        name=f"{number.name} in the middle",
        command=f"{_TRAIN} optim.steps=300 run=run",
        files=_NOTES,
        stop=(number, r"^step 3/"),
        status=128 + number,
        said=rf"^stopped by {number.name}: the training checkpoint of step \d+ is in run; the same command",
    )


def _refused(name: str, arguments: str, said: str, **more: object) -> Case:
    return Case(name=name, command=f"{_TRAIN} {arguments}", files=_NOTES, status=2, said=said, **more)  # type: ignore[arg-type]


def _other(name: str, arguments: str, said: str) -> Case:
    return Case(name=name, command=f"{_SIX} {arguments}", first=(_SIX,), status=2, said=said)


def _base(folder: Path, change: str) -> None:
    """A checkpoint of the user's, with what no run could write again at its end."""
    base = random_checkpoint(folder / "base", small_architecture())
    if change == "folder":
        (base / "training.json").unlink(missing_ok=True)
        (base / "training.json").mkdir()
    else:
        config = (base / "config.json").read_text().rstrip()
        (base / "config.json").write_text(f'{config.removesuffix("}")}, "x": {change}}}')


def _from_base(name: str, change: str, said: str) -> Case:
    arguments = "data=chat data.train=train.jsonl init_from=base data.tokenizer={base} data.max_tokens=128 run=run"
    command = f"diffgemma-train {arguments} optim.steps=1 parallel.accelerator=cpu"
    files = {"train.jsonl": "{}"}
    return Case(name, command, files, said, 2, setup=lambda folder: _base(folder, change), check=_nothing_begun)


def _nothing_begun(folder: Path) -> None:
    assert not (folder / "run").exists(), "a run was begun"


CASES = (
    _from_base("NaN in the base's config.json", "NaN", "^error: config.json:x: nan .*finite numbers, or null"),
    _from_base("training.json is a folder in the base", "folder", "^error: init_from:training.json: .*a folder"),
    _refused("output is a folder of mine", "output=notes", f"^error: output: 'notes holds ideas.txt' {_FOREIGN}"),
    _refused("output is where I am", "output=.", "^error: output: "),
    _refused("output is a file of mine", "output=README.md", "^error: output: 'README.md' .*allowed: a folder"),
    _refused("output is empty", "output=", "^error: output: '' .*a path; fix: pass output=PATH"),
    _refused("run is where I am", "run=.", f"^error: run: '. holds README.md, notes, train.jsonl' {_FOREIGN}"),
    _refused("run is empty", "run=", "^error: run: '' .*a path; fix: pass run=PATH"),
    _refused("run is a folder of mine", "run=notes", f"^error: run: 'notes holds ideas.txt' {_FOREIGN}"),
    _refused("output would hold the run", "output=out run=out/run", "^error: output: 'out' .*does not lie in"),
    _refused("output cannot be written", "output=/proc/model", "^error: output: '/proc.*No such file or directory"),
    _refused("resume=true and nothing there", "resume=true", "^error: resume: True .*resume=auto"),
    *(
        _refused(f"{override} cannot be", f"run=run {override}", f"^error: {said}", check=_nothing_begun)
        for override, said in (
            ("data.generate=5", "data.generate: 5 .*an object of examples, held_out, seed"),
            ("model.eos_token_ids=1", "model.eos_token_ids: 1 .*a list"),
            ("model.layer_types=null", "model.layer_types: None .*a list"),
            ("model.vision_config=5", "model.vision_config: 5 .*an object"),
            ("model.vision_config.hidden_size=x", "model.vision_config: .*a tower that transformers builds"),
            ("model.hidden_size=33", "model.hidden_size: 33 .*a multiple of 4"),
            ("threads=100000", "threads: 100000 .*the CPUs of this machine"),
            ("optim.lr=1e300", "optim.lr: 1e.300 .*at most 1e.30"),
            (f"output={'x' * 300}", "output: .*names of at most 200 bytes"),
        )
    ),
    Case("a beta of zero", f"{_TRAIN} optim.steps=2 run=run optim.betas=[0,0.9]", _NOTES, "^model    run/checkpoint"),
    Case(
        name="model.old and model.partial of mine beside output=model",
        command=f"{_TRAIN} optim.steps=2 run=run output=model",
        files={"model.old/a": "mine", "model.partial/b": "mine", ".model.old/c": "mine"},
        said="^model    model",
    ),
    Case("run inside a folder of mine", f"{_TRAIN} optim.steps=2 run=notes/run", _NOTES, "^model    notes/run"),
    Case("trained again in the same folder", _SIX, _NOTES, "^model    run/checkpoint", first=(_SIX,)),
    _stopped(signal.SIGTERM),
    _stopped(signal.SIGINT),
    _stopped(signal.SIGUSR1),
    _stopped(signal.SIGHUP),
    Case("resume=auto where nothing is", f"{_SIX} resume=auto", _NOTES, "^model    run/checkpoint"),
    _other("resumed with another seed", "seed=1 resume=auto", "^error: seed: 1 .*allowed: 0 as when run began"),
    _other("resumed with other data", "data.generate.seed=9 resume=auto", "^error: data.train: 'another one'.*the same as when run began"),
    _other("resumed with another model", "model.num_experts=2 resume=true", "^error: model: .*as when run began"),
    _other("one process goes on as two", "parallel=fsdp2 parallel.devices=2 resume=true", "^error: parallel.name:"),
    _other("resumed beyond its end", "optim.steps=3 resume=auto", "^error: optim.steps: 3 .*6 or more"),
    Case("a flipped bit in a training checkpoint", f"{_SIX} resume=true", first=(_SIX + " checkpoint_every=3",),
         before=_flip, status=2, said="^error: resume: 'run/checkpoints/step=6.ckpt: .*damaged: other bytes.*resume=auto"),
    Case("a training checkpoint cut short", f"{_SIX} resume=auto", first=(_SIX + " checkpoint_every=3",), before=_cut,
         said="^resume   run/checkpoints/step=6.ckpt: .*is damaged: 9 bytes.*\\n^resume   step 3 of 6", check=_six_steps),
    Case("a volume that fills up", f"{_TRAIN} optim.steps=4 run=run checkpoint_every=2", _NOTES, largest_file=100_000,
         status=1, said="^error: run/checkpoints/step=2.ckpt: File too large; there is no training checkpoint yet; fix:",
         check=_nothing_partial),
    Case("new weights with a NaN in the last tensor", f"{_SIX} resume=false init_from=model", first=(_SIX,),
         before=_spoil, status=2, said="^error: checkpoint:.*NaN or infinity", check=_nothing_moved),
    Case("a folder that is not there in a path", f"{_TRAIN} optim.steps=2 run=a/../b/run", _NOTES,
         said="^model    /.*/b/run/checkpoint"),
    Case("resumed with another rate", f"{_SIX} optim.steps=8 optim.lr=1e-3 resume=true", first=(_SIX,),
         said="^resume   optim.lr: 0.003 -> 0.001"),
    Case("two runs in one folder", f"{_SIX}", beside=f"{_TRAIN} optim.steps=3000 run=run", status=2,
         said="^error: run: 'run' .*no other run is using now"),
    Case("a loss that is not finite", f"{_TRAIN} run=run optim.lr=1e30 optim.warmup_steps=0 checkpoint_every=1",
         status=1, said=r"^error: the .* at step \d+, first in .*; the training checkpoint", check=_curve_is_json),
    Case("others may read what was written", f"{_TRAIN} optim.steps=2 run=run", said="^model", check=_modes),
    Case("a repository with changes of mine", f"{_TRAIN} optim.steps=2 run=run", {"README.md": "public"},
         setup=_repository, said="^model", check=_nothing_private),
    Case("processes and torchrun disagree", f"{_TRAIN} parallel=fsdp2 parallel.devices=4", status=2,
         environment={"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0"},
         said="^error: parallel: '4 .*the 2 processes that torchrun started"),
)  # fmt: skip
