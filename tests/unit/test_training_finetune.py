"""Fine-tuning somebody's checkpoint on their own conversations, from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nemo_diffgemma.checkpoint import TOKENIZER_FILES, Checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fine_tuned(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps by the reference recipe on ten conversations, some of several turns."""
    run = tmp_path_factory.mktemp("finetune")
    user, assistant = {"role": "user", "content": "red chair"}, {"role": "assistant", "content": "green table 12"}
    talks = [{"messages": [user, assistant] * (1 + i % 3)} for i in range(10)]
    (run / "mine.jsonl").write_text("".join(json.dumps(t) + "\n" for t in talks))
    options = [
        "data=chat",
        f"data.train={run / 'mine.jsonl'}",
        "data.max_tokens=200",
        "data.batch=5",
        f"init_from={text_checkpoint}",
        "optim=reference",
        "optim.steps=6",
        "optim.warmup_steps=0",
        "parallel.accelerator=cpu",
        "log_every=2",
        f"run={run}",
    ]
    command = [sys.executable, "-m", "nemo_diffgemma.training.cli", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    said, *lines = done.stdout.splitlines()
    assert said == "data.train: 10 conversations, messages form"
    assert [line.split()[:2] for line in lines] == [["step", "2/6"], ["step", "4/6"], ["step", "6/6"]]
    return run


def test_what_is_trained_moves_and_what_is_not_stays(fine_tuned: Path, text_checkpoint: Path) -> None:
    """Scalars of both phases come through as they were; the reference recipe freezes the routers."""
    before, after = Checkpoint(text_checkpoint), Checkpoint(fine_tuned / "checkpoint")
    assert after.arch == before.arch
    scalars = 0
    for name, tensor in before.tensors(before.text_shapes):
        same = torch.equal(tensor, after.tensor(name))
        if name.endswith("layer_scalar"):
            scalars += 1
            assert same, name
        elif ".router.proj" in name or name.endswith("router.scale"):
            assert same, name
        elif not name.endswith("per_expert_scale"):
            assert not same, name
    assert scalars == 2 * before.arch.num_hidden_layers


def test_tokenizer_and_sampler_settings_travel_with_the_weights(fine_tuned: Path, text_checkpoint: Path) -> None:
    before, after = Checkpoint(text_checkpoint), Checkpoint(fine_tuned / "checkpoint")
    assert after.generation_config == before.generation_config
    for name in TOKENIZER_FILES:
        if (text_checkpoint / name).is_file():
            assert (fine_tuned / "checkpoint" / name).read_bytes() == (text_checkpoint / name).read_bytes()


def test_the_report_holds_every_step(fine_tuned: Path) -> None:
    report = json.loads((fine_tuned / "training.json").read_text())
    assert [entry["step"] for entry in report["losses"]] == [1, 2, 3, 4, 5, 6]
    assert report["steps"] == 6
    assert report["seconds"] > 0
    rates = [entry["lr"] for entry in report["losses"]]
    assert rates[0] == pytest.approx(1.5e-4)
    assert rates == sorted(rates, reverse=True)
    for entry in report["losses"]:
        assert entry["loss"] == pytest.approx(entry["diffusion"] + entry["autoregressive"], rel=1e-5)


def test_training_leaves_tensorboard_events(fine_tuned: Path) -> None:
    assert list(fine_tuned.glob("events.out.tfevents*"))
