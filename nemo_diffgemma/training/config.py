"""The training run as typed, validated values: what Hydra composed, checked before anything runs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.conversations.forms import FORMS
from nemo_diffgemma.conversations.records import find_files
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.hf_config import load_architecture
from nemo_diffgemma.hydra_config import compose_config
from nemo_diffgemma.training.run_folder import OWN_NAMES

CONF = Path(__file__).parent.parent / "conf"
DTYPES = ("float32", "bfloat16")
OPTIMIZERS, SCHEDULES = ("adamw", "muon"), ("cosine", "wsd")
DECAY = 0.4  # of the schedule, under wsd
# What happens to a conversation that does not fit data.max_tokens; see nemo_diffgemma.training.data.Encoder.
TOO_LONG = ("refuse", "skip", "cut")
_MOST = 2**31 - 1  # of what is counted
_MOST_GENERATED = 10**7  # conversations of the demo task: all are held in memory
_MOST_DEVICES = 1024  # of a node: each is a process
# Of numbers without a limit of their own: products of two of them are still numbers of float32. Rates begin above 0.
_SMALLEST, _LARGEST, _LARGEST_FACTOR = 1e-30, 1e30, 1e6
_MOST_SEED = 2**42  # batches draw with it times 2**20, plus the epoch, in 64 bits


@dataclass(frozen=True)
class Generate:
    """Sizes and seed of the demo task's files."""

    examples: int
    held_out: int
    seed: int


@dataclass(frozen=True)
class Data:
    """Where conversations and tokenizer lie, and what is made of them.

    Args:
        train: files to learn from, in this order.
        validation: files to validate on; none where nothing is.
        form: of all records; None recognises each file's.
        tokenizer: directory with a tokenizer.json.
        generate: how to write the demo task's files, which ``train``, ``validation`` and ``tokenizer`` then are.
        batch: examples of a step, over all processes.
        max_tokens: of prompt and answer together.
        too_long: what happens to a longer conversation, one of :data:`TOO_LONG`.
    """

    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    form: str | None
    tokenizer: Path | None
    generate: Generate | None
    batch: int
    max_tokens: int
    too_long: str


@dataclass(frozen=True)
class Parallel:
    """How work is divided: ``single``, ``ddp``, ``fsdp2`` or ``fsdp2_ep``."""

    name: str
    devices: int
    nodes: int
    expert_parallel: int
    accelerator: str
    compute_dtype: str
    activation_checkpointing: bool

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.devices * self.nodes


@dataclass(frozen=True)
class Optim:
    """Optimizer, schedule, and the weights of the loss; conf/optim says what each is."""

    optimizer: str
    lr: float
    matrix_lr: float
    momentum: float
    min_lr: float
    betas: tuple[float, float]
    weight_decay: float
    schedule: str
    warmup_steps: int
    steps: int
    schedule_steps: int
    clip_norm: float
    train_router: bool
    autoregressive_weight: float
    self_conditioning_probability: float

    def rate(self, step: int) -> float:
        """Learning rate of update ``step``, from 0, over ``lr``: linear warm-up, then down to ``min_lr``.

        Down along a cosine; or, under ``wsd`` (warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395), in a line
        over the last :data:`DECAY` of the steps.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        floor = self.min_lr / self.lr
        done = min(1.0, (step - self.warmup_steps) / max(1, self.schedule_steps - self.warmup_steps))
        if self.schedule == "wsd":
            return floor + (1 - floor) * min(1.0, (1 - done) / DECAY)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class TrainConfig:
    """One run of ``diffgemma-train``."""

    arch: Architecture
    data: Data
    parallel: Parallel
    optim: Optim
    run: Path
    output: Path
    output_dtype: str | None
    output_conversations: bool
    init_from: Path | None
    resume: str
    log_git: bool
    seed: int
    log_every: int
    validate_every: int
    checkpoint_every: int
    threads: int | None


def load_config(overrides: Sequence[str]) -> TrainConfig:
    """Compose ``conf/train.yaml`` with command-line overrides and validate it.

    Raises:
        FieldError: on an unknown key or choice, or a value that cannot be used.
    """
    config = compose_config(CONF, "train", overrides)
    return parse_config(config)


def parse_config(config: DictConfig) -> TrainConfig:
    """Validate a composed configuration.

    Raises:
        FieldError: when a value cannot be used; the message names its key.
    """
    if OmegaConf.is_missing(config.data, "train"):
        raise FieldError(
            field="data.train",
            value=None,
            allowed="a JSONL file of conversations",
            fix="pass data.train=FILE, or data=demo",
        )
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    init_from = _path(values["init_from"])
    # a checkpoint knows its own shapes, so the model group is only for models that start from nothing
    arch = load_architecture(init_from) if init_from else Architecture.from_dict(values["model"])
    dtype = values["output_dtype"]
    parsed = TrainConfig(
        arch=arch,
        data=_data(values["data"], init_from),
        parallel=_parallel(values["parallel"], arch),
        optim=_optim(values["optim"]),
        run=_folder("run", values["run"]),
        output=_folder("output", values["output"]),
        output_dtype=None if dtype is None else _one_of("output_dtype", dtype, DTYPES),
        output_conversations=_flag("output_conversations", values["output_conversations"]),
        init_from=init_from,
        resume=_one_of("resume", str(values["resume"]).lower(), ("false", "true", "auto")),
        log_git=_flag("log_git", values["log_git"]),
        seed=_count("seed", values["seed"], 0, _MOST_SEED),
        **{name: _count(name, values[name]) for name in ("log_every", "validate_every", "checkpoint_every")},
        threads=None if values["threads"] is None else _threads(values["threads"]),
    )
    _check_together(parsed)
    if init_from is not None:
        from nemo_diffgemma.training.base import check_base  # torch takes seconds to import

        assert parsed.data.tokenizer is not None
        check_base(init_from, parsed.data.tokenizer)
    return parsed


def _check_together(config: TrainConfig) -> None:
    arch, world = config.arch, config.parallel.world_size
    batch, longest = config.data.batch, config.data.max_tokens
    require(
        batch % world == 0,
        field="data.batch",
        value=batch,
        allowed=f"a multiple of the {world} processes",
        fix=f"pass data.batch={world}",
    )
    limit = arch.max_position_embeddings
    require(
        longest <= limit,
        field="data.max_tokens",
        value=longest,
        allowed=f"at most {limit} (model)",
        fix=f"pass data.max_tokens={limit}",
    )
    _check_widths(config)
    run, output = config.run.resolve(), config.output.resolve()
    apart = output != run and output not in run.parents
    allowed = f"a folder that run={config.run} does not lie in"
    require(
        apart,
        field="output",
        value=str(config.output),
        allowed=allowed,
        fix=f"pass output={config.run / 'checkpoint'}, or leave it out",
    )
    inside = output.relative_to(run).parts[0] if run in output.parents else ""
    require(
        not OWN_NAMES.fullmatch(inside),
        field="output",
        value=str(config.output),
        allowed=f"a folder apart from {config.run / inside}, which the run itself writes",
        fix=f"pass output={config.run / 'checkpoint'}, or leave it out",
    )
    for field, paths in (("data.train", config.data.train), ("data.validation", config.data.validation)):
        replaced = [path for path in paths if output in path.resolve().parents]
        require(
            not replaced,
            field=field,
            value=", ".join(map(str, replaced)),
            allowed=f"files apart from output={config.output}, which is replaced",
            fix="pass output=DIR with another folder, or move the files elsewhere",
        )
    if config.init_from is not None:
        base = config.init_from.resolve()
        apart = base not in (run, output) and base not in run.parents and base not in output.parents
        allowed = f"folders apart from init_from={config.init_from}, which stays as it is"
        require(
            apart,
            field="output",
            value=f"run={config.run} output={config.output}",
            allowed=allowed,
            fix="pass run=DIR output=DIR",
        )


def _check_widths(config: TrainConfig) -> None:
    """The experts' products, one matrix each (torch's grouped_mm), begin every row at a multiple of 16 bytes."""
    parallel = config.parallel
    halves = parallel.compute_dtype == "bfloat16" or (parallel.compute_dtype, parallel.accelerator) == ("auto", "cuda")
    step = 8 if halves else 4
    for name in ("hidden_size", "moe_intermediate_size"):
        value = getattr(config.arch, name)
        field = f"model.{name}" if config.init_from is None else f"init_from:config.json:text_config.{name}"
        require(
            value % step == 0,
            field=field,
            value=value,
            allowed=f"a multiple of {step}, which training the experts takes",
            fix=f"pass model.{name}={max(step, value // step * step)}"
            if config.init_from is None
            else "fine-tune another checkpoint",
        )


def _data(values: Mapping[str, Any], init_from: Path | None) -> Data:
    tokenizer = _path(values["tokenizer"]) or init_from
    if values["generate"] is None:
        generate = None
        train, validation = _files("data.train", values["train"]), _files("data.validation", values["validation"])
        wanted = "a directory with a tokenizer.json"
        fix = "pass data.tokenizer=DIR, or init_from=CHECKPOINT, whose tokenizer is then used"
        found = tokenizer is not None and (tokenizer / "tokenizer.json").is_file()
        require(
            found, field="data.tokenizer", value=None if tokenizer is None else str(tokenizer), allowed=wanted, fix=fix
        )
    else:
        sizes, names = values["generate"], tuple(f.name for f in fields(Generate))
        good, allowed = isinstance(sizes, dict), f"an object of {', '.join(names)}; or null, where the files are yours"
        require(good, field="data.generate", value=sizes, allowed=allowed, fix="pass data=demo, or data.generate=null")
        generate = Generate(*(_count(f"data.generate.{name}", sizes.get(name), most=_MOST_GENERATED) for name in names))
        for name in ("train", "validation", "tokenizer"):
            good, allowed = isinstance(values[name], str), "one path, where the demo task is written"
            require(
                good,
                field=f"data.{name}",
                value=values[name],
                allowed=allowed,
                fix="pass data.generate=null to use your own files",
            )
        train, validation = (Path(values["train"]),), (Path(values["validation"]),)
    form = values.get("format")
    return Data(
        train=train,
        validation=validation,
        form=None if form is None else _one_of("data.format", form, tuple(FORMS)),
        tokenizer=tokenizer,
        generate=generate,
        batch=_count("data.batch", values["batch"]),
        max_tokens=_count("data.max_tokens", values["max_tokens"]),
        too_long=_one_of("data.too_long", values.get("too_long", TOO_LONG[0]), TOO_LONG),
    )


def _files(field: str, value: Any) -> tuple[Path, ...]:
    if value is None:
        return ()
    if isinstance(value, list):
        for item in value:
            require(isinstance(item, str), field=field, value=item, allowed="paths", fix=f"pass {field}=FILE")
    return find_files(field, [str(item) for item in value] if isinstance(value, list) else [str(value)])


def _parallel(values: Mapping[str, Any], arch: Architecture) -> Parallel:
    parallel = Parallel(
        name=_one_of("parallel.name", values["name"], ("single", "ddp", "fsdp2", "fsdp2_ep")),
        devices=_count("parallel.devices", values["devices"], most=_MOST_DEVICES),
        **{name: _count(f"parallel.{name}", values[name]) for name in ("nodes", "expert_parallel")},
        accelerator=_one_of("parallel.accelerator", values["accelerator"], ("auto", "cpu", "cuda")),
        compute_dtype=_one_of("parallel.compute_dtype", values["compute_dtype"], ("auto", *DTYPES)),
        activation_checkpointing=_flag("parallel.activation_checkpointing", values["activation_checkpointing"]),
    )
    world, experts = parallel.world_size, parallel.expert_parallel
    if parallel.name == "single":
        require(
            world == 1,
            field="parallel.devices",
            value=world,
            allowed="1 with parallel=single",
            fix="pass parallel=fsdp2",
        )
    else:
        allowed = f"2 processes or more with parallel={parallel.name}"
        require(world > 1, field="parallel.devices", value=world, allowed=allowed, fix="pass parallel=single for one")
    divides = world % experts == 0 and arch.num_experts % experts == 0
    allowed = f"a common divisor of {world} processes and {arch.num_experts} experts"
    require(
        divides, field="parallel.expert_parallel", value=experts, allowed=allowed, fix="pass parallel.expert_parallel=N"
    )
    if parallel.name == "fsdp2_ep":
        require(
            experts > 1,
            field="parallel.expert_parallel",
            value=experts,
            allowed="2 or more",
            fix="pass parallel=fsdp2 for none",
        )
    else:
        require(
            experts == 1,
            field="parallel.expert_parallel",
            value=experts,
            allowed="1 without expert parallelism",
            fix="parallel=fsdp2_ep",
        )
    return parallel


def _optim(values: Mapping[str, Any]) -> Optim:
    betas = values["betas"]
    pair = isinstance(betas, list) and len(betas) == 2 and all(_is_number(b) and 0 <= b < 1 for b in betas)
    require(pair, field="optim.betas", value=betas, allowed="two numbers in [0, 1)", fix="pass optim.betas=[0.9,0.95]")
    rates = dict.fromkeys(("lr", "matrix_lr", "clip_norm"), (_SMALLEST, _LARGEST))
    factors = dict.fromkeys(
        ("weight_decay", "autoregressive_weight", "momentum", "self_conditioning_probability"), (0.0, _LARGEST_FACTOR)
    )
    limits = rates | factors | {"min_lr": (0.0, _LARGEST)}
    optim = Optim(
        optimizer=_one_of("optim.optimizer", values["optimizer"], OPTIMIZERS),
        schedule=_one_of("optim.schedule", values["schedule"], SCHEDULES),
        **{name: _number(f"optim.{name}", values[name], *limits[name]) for name in limits},
        betas=(float(betas[0]), float(betas[1])),
        warmup_steps=_count("optim.warmup_steps", values["warmup_steps"], 0),
        steps=_count("optim.steps", values["steps"]),
        schedule_steps=_count("optim.schedule_steps", values["schedule_steps"]),
        train_router=_flag("optim.train_router", values["train_router"]),
    )
    require(optim.momentum < 1, field="optim.momentum", value=optim.momentum, allowed="0 to below 1", fix="pass 0.95")
    probability = optim.self_conditioning_probability
    require(
        probability <= 1,
        field="optim.self_conditioning_probability",
        value=probability,
        allowed="0 to 1",
        fix="pass 0.5",
    )
    require(
        optim.min_lr <= optim.lr,
        field="optim.min_lr",
        value=optim.min_lr,
        allowed=f"at most optim.lr {optim.lr}",
        fix="lower it",
    )
    return optim


def _folder(field: str, value: Any) -> Path:
    good = value is not None and str(value).strip() != ""
    require(good, field=field, value=value, allowed="a path", fix=f"pass {field}=PATH")
    return Path(str(value))


def _threads(value: Any) -> int:
    """CPU threads of a process: more than there are CPUs would only wait for each other."""
    cpus = os.cpu_count() or 1
    good = _is_number(value) and isinstance(value, int) and 1 <= value <= cpus
    allowed = f"an integer from 1 to {cpus}, the CPUs of this machine; or null"
    require(good, field="threads", value=value, allowed=allowed, fix="pass threads=1, or leave it out")
    return int(value)


def _path(value: Any) -> Path | None:
    return None if value is None else Path(str(value))


def _count(field: str, value: Any, least: int = 1, most: int = _MOST) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    meant = int(value) if isinstance(value, float) and value.is_integer() and least <= value <= most else least
    allowed = f"an integer from {least} to {most}"
    require(good, field=field, value=value, allowed=allowed, fix=f"pass {field}={meant}")
    return int(value)


def _number(field: str, value: Any, least: float, most: float) -> float:
    good = _is_number(value) and least <= value <= most
    above = f"a number > 0 ({least:g} or more)" if least else "a number >= 0"
    require(good, field=field, value=value, allowed=f"{above}, at most {most:g}", fix=f"pass {field}=NUMBER")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flag(field: str, value: Any) -> bool:
    require(isinstance(value, bool), field=field, value=value, allowed="true or false", fix=f"pass {field}=true")
    return bool(value)


def _one_of(field: str, value: Any, allowed: Sequence[str]) -> str:
    require(value in allowed, field=field, value=value, allowed=", ".join(allowed), fix=f"pass {field}={allowed[0]}")
    return str(value)
