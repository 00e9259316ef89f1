"""diffgemma-train: its configuration, its messages, its dry run."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.hydra_config import choices
from nemo_diffgemma.training.config import CONF, load_config
from nemo_diffgemma.training.dry_run import summary
from nemo_diffgemma.training.settings import Optim
from nemo_diffgemma.training.vision import check_vision


def cli(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nemo_diffgemma.training", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=cwd)


@pytest.mark.parametrize("model", choices(CONF, "model"))
@pytest.mark.parametrize("parallel", choices(CONF, "parallel"))
def test_every_choice_composes(model: str, parallel: str) -> None:
    for optim in choices(CONF, "optim"):
        # the demo model has fewer experts than the node that the choice is for has devices
        fewer = ["parallel.expert_parallel=4"] if (model, parallel) == ("demo", "fsdp2_ep") else []
        config = load_config([f"model={model}", f"parallel={parallel}", f"optim={optim}", *fewer])
        assert config.parallel.name == parallel


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=foo"], r"^model: 'foo'.*demo, diffusion_gemma_1b, diffusion_gemma_26b_a4b"),
        (["model.num_expert=4"], r"^model.num_expert: '4'.*model.num_experts.*fix: pass model.num_experts=\.\.\.$"),
        (["optim.step=4"], r"^optim.step: '4'.*fix: pass optim.steps=\.\.\.$"),
        (["+model.num_expert=4"], r"command line.*\+model.num_expert=4.*pass model.num_expert=4"),
        (["model.num_experts=0"], r"^model.num_experts: 0.*an integer >= 1"),
        (["model.top_k_experts=9"], r"^model.top_k_experts: 9.*at most 4"),
        (["data=chat"], r"^data.train: None.*a JSONL file.*pass data.train=FILE"),
        (["data=chat", "data.train=no.jsonl"], r"^data.train: 'no.jsonl'.*a JSONL file that exists"),
        (["data=chat", "data.train=no*.jsonl"], r"^data.train: 'no\*.jsonl'.*a pattern that matches a file"),
        (["data=chat", "data.train=[]"], r"^data.train: \[\].*one file or more"),
        (["data=chat", "data.train=tests"], r"^data.train: 'tests'.*files, not a folder"),
        (["data.train=[a,b]"], r"^data.train: \['a', 'b'\].*one path, where the demo task is written"),
        (["data=chat", "data.train=pyproject.toml", "data.tokenizer=."], r"^data.tokenizer: '.'.*tokenizer.json"),
        (["data.batch=0"], r"^data.batch: 0.*an integer from 1 to"),
        (["seed=17592186044416"], r"^seed: 17592186044416.*an integer from 0 to 4398046511104"),
        (["optim.steps=1e3"], r"^optim.steps: 1000.0.*fix: pass optim.steps=1000$"),
        (["data.batch=30", "parallel=fsdp2"], r"^data.batch: 30.*a multiple of the 8 processes"),
        (["data.max_tokens=4096"], r"^data.max_tokens: 4096.*at most 1024"),
        (["parallel.devices=2"], r"^parallel.devices: 2.*1 with parallel=single.*parallel=fsdp2"),
        (["parallel=fsdp2_ep", "parallel.expert_parallel=3"], r"^parallel.expert_parallel: 3.*a common divisor of 8"),
        (["parallel=fsdp2", "parallel.expert_parallel=2"], r"^parallel.expert_parallel: 2.*1 without expert"),
        (["parallel.accelerator=tpu"], r"^parallel.accelerator: 'tpu'.*auto, cpu, cuda"),
        (["optim.lr=fast"], r"^optim.lr: 'fast'.*a number"),
        (["optim.betas=[0.9]"], r"^optim.betas: \[0.9\].*two numbers"),
        (["optim.self_conditioning_probability=2"], r"^optim.self_conditioning_probability: 2.0.*0 to 1"),
        (["optim.min_lr=1"], r"^optim.min_lr: 1.0.*at most optim.lr 0.003"),
        (["output_dtype=int8"], r"^output_dtype: 'int8'.*float32, bfloat16"),
        (["resume=maybe"], r"^resume: 'maybe'.*false, true, auto"),
        (["init_from=nowhere"], r"^checkpoint: 'nowhere'.*a directory with a config.json"),
        (["threads=0"], r"^threads: 0.*an integer from 1 to"),
        (["threads=100000"], r"^threads: 100000.*the CPUs of this machine"),
        (["threads=99999999999999"], r"^threads: 99999999999999.*the CPUs of this machine"),
        (["data.generate=false"], r"^data.generate: False.*an object of examples, held_out, seed"),
        (["data.generate=true"], r"^data.generate: True.*an object of"),
        (["data.generate=5"], r"^data.generate: 5.*an object of"),
        (["data.generate=[]"], r"^data.generate: '\[\]'.*a value of the kind that the key has"),
        (["data.generate.examples=1000000000"], r"^data.generate.examples: 1000000000.*an integer from 1 to 10000000"),
        (["data=chat", "data.train=pyproject.toml", "data.generate={}"], r"^data.generate.examples: None.*an integer"),
        (["model.eos_token_ids=1"], r"^model.eos_token_ids: 1 .*a list"),
        (["model.eos_token_ids=null"], r"^model.eos_token_ids: None .*a list"),
        (["model.layer_types=5"], r"^model.layer_types: 5 .*a list"),
        (["model.layer_types=null"], r"^model.layer_types: None .*a list"),
        (["model.layer_types=full_attention"], r"^model.layer_types: 'full_attention' .*a list"),
        (["model.vision_config=5"], r"^model.vision_config: 5 .*an object of names and values"),
        (["model.vision_config=[1]"], r"^model.vision_config: '\[1\]' .*a value of the kind that the key has"),
        (["model.hidden_size=33"], r"^model.hidden_size: 33 .*a multiple of 4.*fix: pass model.hidden_size=32"),
        (["model.moe_intermediate_size=2"], r"^model.moe_intermediate_size: 2 .*fix: pass .*=4"),
        (["model.hidden_size=132", "parallel.compute_dtype=bfloat16"], r"^model.hidden_size: 132 .*a multiple of 8"),
        (["model.hidden_size=1000000000000"], r"^model.hidden_size: 1000000000000 .*at most 2147483647"),
        (["model.vocab_size=1000000000"], r"^model.vocab_size: 1000000000 .*at most 16777216"),
        (["parallel=ddp", "parallel.devices=100000"], r"^parallel.devices: 100000 .*from 1 to 1024"),
        (["optim.betas=[0,1]"], r"^optim.betas: \[0, 1\].*two numbers in \[0, 1\)"),
        (["optim.betas=[true,0.5]"], r"^optim.betas: \[True, 0.5\]"),
        (["optim.momentum=1"], r"^optim.momentum: 1.0 .*0 to below 1"),
        (["hydra.run.dir=x"], r"^hydra.run.dir: 'x' .*a key of this command"),
        (["hydra/launcher=basic"], r"^hydra/launcher: 'basic' .*a key of this command"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(overrides: list[str], said: str) -> None:
    with pytest.raises(FieldError, match=said):
        load_config(overrides)


NUMBERS = (
    *("lr", "matrix_lr", "min_lr", "momentum", "weight_decay", "clip_norm", "autoregressive_weight"),
    "self_conditioning_probability",
)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["1e300", "-1", "inf", "nan", "true", "null", "[1]", "9" * 400])
def test_no_number_of_the_optimizer_leaves_float32(name: str, value: str) -> None:
    with pytest.raises(FieldError, match=rf"^optim\.{name}: .*(a number|at most optim.lr)"):
        load_config([f"optim.{name}={value}"])


@pytest.mark.parametrize("name", ["lr", "matrix_lr", "clip_norm"])
@pytest.mark.parametrize("value", ["0", "1e-300"])
def test_a_rate_is_above_zero(name: str, value: str) -> None:
    with pytest.raises(FieldError, match=rf"^optim\.{name}: .*a number > 0 \(1e-30 or more\)"):
        load_config([f"optim.{name}={value}", "optim.min_lr=0"])


def test_a_beta_may_be_zero() -> None:
    assert load_config(["optim.betas=[0,0.9]"]).optim.betas == (0.0, 0.9)


@pytest.mark.parametrize("key", ["run", "output", "data.train", "data.tokenizer"])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("loop", "loop: Too many levels of symbolic links' .*whose links lead somewhere"),
        ("loop/x", "loop/x: Too many levels of symbolic links' "),
        ("dangling", "dangling: No such file or directory' .*whose links lead somewhere"),
        ("file/x", "file/x: Not a directory' .*a path below folders"),
        ("x" * 300, "xxx' .*a path of names of at most 2[05][05] bytes each"),
        ("a/" + "é" * 150, ".* of names of at most 2[05][05] bytes each"),
        ("x/" * 3000, ".* 3584 bytes in all"),
        ("a\0b", r"a\\x00b' .*without line ends and other control characters"),
    ],
)
def test_a_path_that_can_be_none_is_refused(
    key: str, path: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(FieldError, match=f"^{key}: '.*{said}"):
        load_config([f"{key}={path}"])
    assert len(list(tmp_path.iterdir())) == 3


def test_a_vision_tower_that_cannot_be_built_is_refused_before_the_first_step() -> None:
    config = load_config(["model.vision_config.hidden_size=banana"])
    with pytest.raises(FieldError, match=r"^model.vision_config: .*hidden_size.*a tower that transformers builds"):
        check_vision(config.arch)


def test_fine_tuning_needs_a_tokenizer_from_somewhere(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    with pytest.raises(FieldError, match=r"^data.tokenizer: None.*a directory with a tokenizer.json.*init_from="):
        load_config(["data=chat", f"data.train={data}"])


def test_init_from_decides_the_architecture_and_brings_the_tokenizer(text_checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    config = load_config(["data=chat", f"data.train={data}", "data.max_tokens=128", f"init_from={text_checkpoint}"])
    assert config.arch.vocab_size == 300
    assert config.data.tokenizer == text_checkpoint


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.format=csv", r"^data.format: 'csv'.*messages, sharegpt, prompt_completion, alpaca"),
        ("data.too_long=drop", r"^data.too_long: 'drop'.*refuse, skip, cut"),
    ],
)
def test_what_happens_to_conversations_is_one_of_a_few_words(
    override: str, said: str, text_checkpoint: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    options = ["data=chat", f"data.train={data}", "data.max_tokens=128", f"init_from={text_checkpoint}"]
    config = load_config(options).data
    assert (config.train, config.validation, config.form, config.too_long) == ((data,), (), None, "refuse")
    with pytest.raises(FieldError, match=said):
        load_config([*options, override])


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    optim = load_config(["optim=reference", "optim.steps=1000"]).optim
    assert isinstance(optim, Optim)
    rates = [optim.rate(step) * optim.lr for step in range(1001)]
    assert rates[24] == rates[25] == optim.lr
    assert rates[0] == pytest.approx(optim.lr / 25)
    assert rates[1000] == pytest.approx(optim.min_lr)
    assert all(a >= b for a, b in itertools.pairwise(rates[25:]))


def test_the_26b_has_the_published_sizes() -> None:
    values = summary(load_config(["model=diffusion_gemma_26b_a4b", "parallel=fsdp2_ep", "optim=reference"]))
    parameters = values["parameters"]
    assert round(parameters["total"] / 1e9, 2) == 25.25
    assert round(parameters["active"] / 1e9, 2) == 3.84
    assert values["bytes"]["bfloat16"] == 2 * parameters["total"]
    # routers are frozen in the reference recipe
    assert parameters["trained"] == parameters["total"] - 30 * (128 * 2816 + 2816)
    held = values["parallel"]["bytes_per_process"]
    assert held["weights"] == parameters["total"] * 4 // 8
    assert held["adamw_states"] == parameters["trained"] * 8 // 8
    assert values["parallel"]["experts_per_process"] == 16


def test_dry_run_prints_json_and_leaves_nothing(tmp_path: Path) -> None:
    done = cli("model=diffusion_gemma_1b", "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 0.9e9 < json.loads(done.stdout)["parameters"]["total"] < 1.1e9
    assert not list(tmp_path.iterdir())


def test_help_names_the_groups_and_their_choices() -> None:
    text = cli("--help").stdout
    for wanted in ("model=", "demo, diffusion_gemma_1b, diffusion_gemma_26b_a4b", "fsdp2_ep", "--dry-run", "examples"):
        assert wanted in text


@pytest.mark.parametrize(
    "arguments", [["model=foo"], ["--fast"], ["--json"], ["resume=true", "run=nowhere"], ["data=chat", "data.train=x"]]
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], tmp_path: Path) -> None:
    done = cli(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_broken_data_file_is_one_line_and_status_2(text_checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"messages": 3}\n')
    options = ["data=chat", f"data.train={data}", "data.max_tokens=128", f"data.tokenizer={text_checkpoint}"]
    done = cli(*options, f"run={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {data}:1: messages: 3 cannot be used; allowed: a list of messages")
    assert done.stderr.count("\n") == 1
