"""The training run's configuration: what Hydra composed becomes typed settings, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.conversations.forms import FORMS
from nemo_diffgemma.conversations.records import find_files
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.hf_config import load_architecture
from nemo_diffgemma.hydra_config import compose_config
from nemo_diffgemma.training.settings import (
    DTYPES,
    OPTIMIZERS,
    SCHEDULES,
    TOO_LONG,
    Data,
    Generate,
    Optim,
    Parallel,
    TrainConfig,
)
from nemo_diffgemma.training.together import check_together
from nemo_diffgemma.training.values import count, flag, folder, is_number, number, one_of, path, threads

CONF = Path(__file__).parent.parent / "conf"
_MOST_GENERATED = 10**7  # conversations of the demo task: all are held in memory
_MOST_DEVICES = 1024  # of a node: each is a process
# Of numbers without a limit of their own: products of two of them are still numbers of float32. Rates begin above 0.
_SMALLEST, _LARGEST, _LARGEST_FACTOR = 1e-30, 1e30, 1e6
_MOST_SEED = 2**42  # batches draw with it times 2**20, plus the epoch, in 64 bits


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
    init_from = path(values["init_from"])
    # a checkpoint knows its own shapes, so the model group is only for models that start from nothing
    arch = load_architecture(init_from) if init_from else Architecture.from_dict(values["model"])
    dtype = values["output_dtype"]
    parsed = TrainConfig(
        arch=arch,
        data=_data(values["data"], init_from),
        parallel=_parallel(values["parallel"], arch),
        optim=_optim(values["optim"]),
        run=folder("run", values["run"]),
        output=folder("output", values["output"]),
        output_dtype=None if dtype is None else one_of("output_dtype", dtype, DTYPES),
        output_conversations=flag("output_conversations", values["output_conversations"]),
        init_from=init_from,
        resume=one_of("resume", str(values["resume"]).lower(), ("false", "true", "auto")),
        log_git=flag("log_git", values["log_git"]),
        seed=count("seed", values["seed"], 0, _MOST_SEED),
        **{name: count(name, values[name]) for name in ("log_every", "validate_every", "checkpoint_every")},
        threads=None if values["threads"] is None else threads(values["threads"]),
    )
    check_together(parsed)
    if init_from is not None:
        from nemo_diffgemma.training.base import check_base  # torch takes seconds to import

        assert parsed.data.tokenizer is not None
        check_base(init_from, parsed.data.tokenizer)
    return parsed


def _data(values: Mapping[str, Any], init_from: Path | None) -> Data:
    tokenizer = path(values["tokenizer"]) or init_from
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
        generate = Generate(*(count(f"data.generate.{name}", sizes.get(name), most=_MOST_GENERATED) for name in names))
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
        form=None if form is None else one_of("data.format", form, tuple(FORMS)),
        tokenizer=tokenizer,
        generate=generate,
        batch=count("data.batch", values["batch"]),
        max_tokens=count("data.max_tokens", values["max_tokens"]),
        too_long=one_of("data.too_long", values.get("too_long", TOO_LONG[0]), TOO_LONG),
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
        name=one_of("parallel.name", values["name"], ("single", "ddp", "fsdp2", "fsdp2_ep")),
        devices=count("parallel.devices", values["devices"], most=_MOST_DEVICES),
        **{name: count(f"parallel.{name}", values[name]) for name in ("nodes", "expert_parallel")},
        accelerator=one_of("parallel.accelerator", values["accelerator"], ("auto", "cpu", "cuda")),
        compute_dtype=one_of("parallel.compute_dtype", values["compute_dtype"], ("auto", *DTYPES)),
        activation_checkpointing=flag("parallel.activation_checkpointing", values["activation_checkpointing"]),
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
    pair = isinstance(betas, list) and len(betas) == 2 and all(is_number(b) and 0 <= b < 1 for b in betas)
    require(pair, field="optim.betas", value=betas, allowed="two numbers in [0, 1)", fix="pass optim.betas=[0.9,0.95]")
    rates = dict.fromkeys(("lr", "matrix_lr", "clip_norm"), (_SMALLEST, _LARGEST))
    factors = dict.fromkeys(
        ("weight_decay", "autoregressive_weight", "momentum", "self_conditioning_probability"), (0.0, _LARGEST_FACTOR)
    )
    limits = rates | factors | {"min_lr": (0.0, _LARGEST)}
    optim = Optim(
        optimizer=one_of("optim.optimizer", values["optimizer"], OPTIMIZERS),
        schedule=one_of("optim.schedule", values["schedule"], SCHEDULES),
        **{name: number(f"optim.{name}", values[name], *limits[name]) for name in limits},
        betas=(float(betas[0]), float(betas[1])),
        warmup_steps=count("optim.warmup_steps", values["warmup_steps"], 0),
        steps=count("optim.steps", values["steps"]),
        schedule_steps=count("optim.schedule_steps", values["schedule_steps"]),
        train_router=flag("optim.train_router", values["train_router"]),
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
