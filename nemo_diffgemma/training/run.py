"""One training run: trainer, fit, export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from nemo_diffgemma.checkpoint import CALIBRATION, HELD_OUT
from nemo_diffgemma.training.checkpoint_files import checkpoint_path, newest_step
from nemo_diffgemma.training.checkpoints import TrainingCheckpoints
from nemo_diffgemma.training.corpus import Corpus, load_corpus
from nemo_diffgemma.training.export import export
from nemo_diffgemma.training.launcher import mark_children, started_outside
from nemo_diffgemma.training.logs import log_to
from nemo_diffgemma.training.module import DiffusionGemmaModel
from nemo_diffgemma.training.progress import Report
from nemo_diffgemma.training.settings import TrainConfig
from nemo_diffgemma.training.signals import StopSignals
from nemo_diffgemma.training.strategy import AtomicCheckpointIO, AutoModelStrategy, ReplicaStrategy, compute_dtype

_PATIENCE_S = 30  # for the other processes to end after the first


def train(config: TrainConfig, corpus: Corpus | None, signals: StopSignals) -> None:
    """Run to ``optim.steps`` and export; every process of a distributed run calls this.

    Args:
        config: of the run.
        corpus: what the first process prepared; None in the others.
        signals: what may tell this process to stop.

    Raises:
        NotFinite: when a loss or gradient is not; the last training checkpoint and the output stay as they are.
        Stopped: after a signal; a training checkpoint of the step it came in is written first.
        OSError: when something cannot be written.
    """
    torch.set_num_threads(config.threads or _threads(config))
    lightning.seed_everything(config.seed, verbose=False)
    report = Report(config.optim.steps, config.log_every)
    trainer = build_trainer(config, report, signals)
    if started_outside() and config.parallel.world_size > 1:
        # torchrun's and Slurm's processes all start at once: they wait here for what the first prepares
        trainer.strategy.meet()
        trainer.strategy.barrier()
    corpus = corpus or load_corpus(config, say=None)
    log_to(trainer, config.run, config.log_git)
    validation = [] if corpus.validation is None else corpus.validation.examples
    model = DiffusionGemmaModel(config, corpus.train.examples, validation, signals, trainer)
    step = newest_step(config.run)
    with _other_processes(trainer):
        trainer.fit(model, ckpt_path=None if step is None else str(checkpoint_path(config.run, step)))
        training = report.write(config.run) if trainer.is_global_zero else {}
        export(model.net, config, _conversations(config, corpus), training)
        if trainer.is_global_zero:
            print(f"model    {config.output}")


def _threads(config: TrainConfig) -> int:
    """CPU threads of each process: all of the machine's, divided among its processes."""
    return max(1, torch.get_num_threads() // config.parallel.devices)


def _conversations(config: TrainConfig, corpus: Corpus) -> dict[str, list[str]]:
    """JSON lines that travel with the model where that is asked for: all held-out ones and the first learnt ones."""
    if not config.output_conversations:
        return {}
    held_out = {} if corpus.validation is None else {HELD_OUT: corpus.validation.lines}
    return {CALIBRATION: corpus.train.lines, **held_out}


@contextmanager
def _other_processes(trainer: Any) -> Iterator[None]:
    """Lightning starts the other processes of ``parallel.devices``: none is left when this ends."""
    mark_children()
    try:
        yield
        for process in getattr(trainer.strategy.launcher, "procs", []):
            process.wait(_PATIENCE_S)
    except BaseException:
        # what all of them stopped for is saved; they would only complain that the first is gone
        for process in getattr(trainer.strategy.launcher, "procs", []):
            process.kill()
        raise


def build_trainer(config: TrainConfig, report: Report, signals: StopSignals) -> Any:
    """Lightning's trainer for this run."""
    parallel = config.parallel
    accelerator = parallel.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = compute_dtype(parallel, accelerator == "cuda")
    whole = parallel.name in ("single", "ddp")
    if parallel.name == "single":
        strategy: Any = SingleDeviceStrategy(torch.device("cuda:0" if accelerator == "cuda" else "cpu"))
    else:
        strategy = ReplicaStrategy() if whole else AutoModelStrategy(parallel, dtype)
    steps, validated = config.optim.steps, bool(config.data.validation)
    return lightning.Trainer(
        accelerator=accelerator,
        devices=parallel.devices,
        num_nodes=parallel.nodes,
        strategy=strategy,
        plugins=[AtomicCheckpointIO()] if whole else None,
        # FSDP has its own policy for mixed precision
        precision="bf16-mixed" if whole and dtype == torch.bfloat16 else "32-true",
        max_steps=steps,
        val_check_interval=config.validate_every if validated else None,
        check_val_every_n_epoch=None,
        limit_val_batches=None if validated else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every,
        callbacks=[report, TrainingCheckpoints(config.run, config.checkpoint_every, steps, signals, report)],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,  # exp_manager brings it
        enable_checkpointing=False,
    )
