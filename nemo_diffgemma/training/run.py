"""One training run: data, trainer, fit, export."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from nemo.utils.exp_manager import exp_manager

from nemo_diffgemma.checkpoint import CALIBRATION, HELD_OUT
from nemo_diffgemma.training.config import TrainConfig
from nemo_diffgemma.training.export import export
from nemo_diffgemma.training.launcher import check_launcher, first_process
from nemo_diffgemma.training.module import DiffusionGemmaModel
from nemo_diffgemma.training.prepare import prepare_data
from nemo_diffgemma.training.progress import Report
from nemo_diffgemma.training.resume import DIRECTORY, FILE_NAME, latest_checkpoint
from nemo_diffgemma.training.strategy import AtomicCheckpointIO, AutoModelStrategy, compute_dtype


def train(config: TrainConfig) -> None:
    """Run to ``optim.steps`` and export; every process of a distributed run calls this.

    Raises:
        FieldError: when a file is not what it should be, or there is nothing to resume from.
    """
    check_launcher(config.parallel)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    resume_from = latest_checkpoint(config.run) if config.resume else None
    learnt, validation = prepare_data(config, say=partial(print, flush=True) if first_process() else None)
    said = {CALIBRATION: learnt.lines} | ({HELD_OUT: validation.lines} if validation else {})
    lightning.seed_everything(config.seed, verbose=False)
    report = Report(config.optim.steps, config.log_every)
    trainer = build_trainer(config, report, validated=validation is not None)
    exp_manager(trainer, experiment(config, None if resume_from is None else str(resume_from)))
    model = DiffusionGemmaModel(config, learnt.examples, validation.examples if validation else [], trainer)
    trainer.fit(model, ckpt_path=trainer.ckpt_path)
    export(model.net, config, said)
    if trainer.is_global_zero:
        parameters = sum(p.numel() for p in model.net.parameters())
        report.write(config.output.parent, parameters)


def build_trainer(config: TrainConfig, report: Report, validated: bool) -> Any:
    """Lightning's trainer for this run."""
    parallel = config.parallel
    accelerator = parallel.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = compute_dtype(parallel, accelerator == "cuda")
    single = parallel.name == "single"
    device = torch.device("cuda:0" if accelerator == "cuda" else "cpu")
    return lightning.Trainer(
        accelerator=accelerator,
        devices=parallel.devices,
        num_nodes=parallel.nodes,
        strategy=SingleDeviceStrategy(device) if single else AutoModelStrategy(parallel, dtype),
        plugins=[AtomicCheckpointIO()] if single else None,
        # FSDP has its own policy for mixed precision
        precision="bf16-mixed" if single and dtype == torch.bfloat16 else "32-true",
        max_steps=config.optim.steps,
        val_check_interval=config.validate_every if validated else None,
        check_val_every_n_epoch=None,
        limit_val_batches=None if validated else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every,
        callbacks=[report],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        # exp_manager brings both
        logger=False,
        enable_checkpointing=False,
    )


def experiment(config: TrainConfig, resume_from: str | None) -> dict[str, Any]:
    """NeMo's exp_manager: TensorBoard, and the newest training checkpoint kept."""
    return {
        "explicit_log_dir": str(config.run),
        "resume_from_checkpoint": resume_from,
        "create_tensorboard_logger": True,
        "checkpoint_callback_params": {
            "dirpath": str(config.run / DIRECTORY),
            "filename": FILE_NAME,
            "monitor": "step",
            "mode": "max",
            "save_top_k": 1,
            "save_last": False,
            "every_n_train_steps": config.checkpoint_every,
            "every_n_epochs": None,
            "save_nemo_on_train_end": False,
            "verbose": False,
        },
        "log_step_timing": False,
        "log_tflops_per_sec_per_gpu": False,
        "create_preemption_callback": False,
        "seconds_to_sleep": 0,
    }
