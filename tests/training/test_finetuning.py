"""Fine-tuning somebody's checkpoint, as transformers saves it, on their own conversations, from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_diffgemma.checkpoint import TOKENIZER_FILES, Checkpoint
from nemo_diffgemma.hf_config import write_config
from tests.support import SMALL_VISION, small_architecture

pytestmark = pytest.mark.slow

# what a base has that training neither reads nor changes
OTHERS = {
    "processor_config.json": '{"image_seq_length": 7}',
    "LICENSE": "Apache",
    "README.md": "# A model card",
    "assets/figure.svg": "<svg/>",
}


@pytest.fixture(scope="module")
def base(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 checkpoint with a vision tower and image tokens of its own, saved by transformers."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    arch = small_architecture(vocab_size=300, canvas_length=16, eos_token_ids=(1, 5), vision_config=SMALL_VISION)
    ids = {"image_token_id": 297, "boi_token_id": 298, "eoi_token_id": 299, "vision_soft_tokens_per_image": 9}
    torch.manual_seed(3)
    model = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(**write_config(arch), **ids))
    folder = tmp_path_factory.mktemp("base") / "base"
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (text_checkpoint / name).is_file():
            shutil.copyfile(text_checkpoint / name, folder / name)
    for name, text in OTHERS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [1, 5], "of_a_later_version": 1}))
    return folder


@pytest.fixture(scope="module")
def fine_tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps by the reference recipe on ten conversations, some of several turns."""
    run = tmp_path_factory.mktemp("finetune") / "run"
    data = run.with_name("mine.jsonl")
    user, assistant = {"role": "user", "content": "red chair"}, {"role": "assistant", "content": "green table 12"}
    talks = [{"messages": [user, assistant] * (1 + i % 3)} for i in range(10)]
    data.write_text("".join(json.dumps(t) + "\n" for t in talks))
    options = [
        "data=chat",
        f"data.train={data}",
        "data.max_tokens=200",
        "data.batch=5",
        f"init_from={base}",
        "optim=reference",
        "optim.steps=6",
        "optim.warmup_steps=0",
        "parallel.accelerator=cpu",
        "log_every=2",
        f"run={run}",
    ]
    command = [sys.executable, "-m", "nemo_diffgemma.training", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, umask=0o027)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines.pop(0) == "data.train: 10 conversations, messages form"
    assert [line.split()[:2] for line in lines] == [
        ["step", "2/6"], ["step", "4/6"], ["step", "6/6"], ["model", f"{run}/checkpoint"],
    ]  # fmt: skip
    return run


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def test_what_is_trained_moves_and_what_is_not_stays(fine_tuned: Path, base: Path) -> None:
    """Scalars of both phases come through as they were; the reference recipe freezes the routers."""
    before, after = Checkpoint(base), Checkpoint(fine_tuned / "checkpoint")
    assert after.arch == before.arch
    scalars = 0
    for name, tensor in before.tensors(before.text_shapes):
        same = torch.equal(tensor, after.tensor(name))
        if name.endswith("layer_scalar"):
            scalars += 1
            assert same, name
        elif ".router.proj" in name or name.endswith("router.scale"):
            assert same, name
        elif len(tensor.shape) > 1:  # a step is too small for a norm of 1 in bfloat16
            assert not same, name
    assert scalars == 2 * before.arch.num_hidden_layers


def test_everything_else_of_the_base_comes_back(fine_tuned: Path, base: Path) -> None:
    before, after = Checkpoint(base), Checkpoint(fine_tuned / "checkpoint")
    assert config_of(after.directory) == config_of(before.directory)
    assert after.generation_config == before.generation_config
    assert before.vision_shapes
    for name, tensor in before.tensors(before.vision_shapes):
        assert torch.equal(tensor, after.tensor(name)), name
    for name in (*OTHERS, *(n for n in TOKENIZER_FILES if (base / n).is_file())):
        assert (after.directory / name).read_bytes() == (base / name).read_bytes(), name
    assert {after.stored_dtype(name) for name in after.text_shapes} == {"BF16"}


def test_transformers_loads_the_model(fine_tuned: Path) -> None:
    from transformers import DiffusionGemmaForBlockDiffusion

    model, info = DiffusionGemmaForBlockDiffusion.from_pretrained(fine_tuned / "checkpoint", output_loading_info=True)
    assert not any(info.values()), info
    assert model.dtype == torch.bfloat16
    assert model.config.image_token_id == 297


def test_no_conversation_and_no_commit_is_in_what_was_written(fine_tuned: Path) -> None:
    for path in fine_tuned.rglob("*"):
        assert path.is_dir() or b"chair" not in path.read_bytes() or path.name == "tokenizer.json", path
        assert path.name not in ("git-info.log", "held_out.jsonl", "calibration.jsonl")


def test_modes_follow_the_umask(fine_tuned: Path) -> None:
    for path in (fine_tuned, *fine_tuned.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path


def test_the_report_holds_every_step(fine_tuned: Path) -> None:
    report = json.loads((fine_tuned / "training.json").read_text())
    beside_the_weights = json.loads((fine_tuned / "checkpoint" / "training.json").read_text())
    assert beside_the_weights == report | {"files": beside_the_weights["files"]}
    assert [entry["step"] for entry in report["losses"]] == [1, 2, 3, 4, 5, 6]
    assert report["steps"] == 6
    assert report["seconds"] > 0
    rates = [entry["lr"] for entry in report["losses"]]
    assert rates[0] == pytest.approx(1.5e-4)
    assert rates == sorted(rates, reverse=True)
    for entry in report["losses"]:
        assert entry["loss"] == pytest.approx(entry["diffusion"] + entry["autoregressive"], rel=1e-5)


def test_training_leaves_tensorboard_events(fine_tuned: Path) -> None:
    assert list((fine_tuned / "nemo").glob("events.out.tfevents*"))
