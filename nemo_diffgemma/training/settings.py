"""The settings of a training run, as typed values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from nemo_diffgemma.architecture import Architecture

DTYPES = ("float32", "bfloat16")
OPTIMIZERS, SCHEDULES = ("adamw", "muon"), ("cosine", "wsd")
DECAY = 0.4  # of the schedule, under wsd
# What happens to a conversation that does not fit data.max_tokens; see nemo_diffgemma.training.data.Encoder.
TOO_LONG = ("refuse", "skip", "cut")


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
