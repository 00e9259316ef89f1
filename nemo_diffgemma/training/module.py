"""The NeMo model: the network, its loss, its optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from nemo.core import ModelPT
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.diffusion.loss import autoregressive_loss, diffusion_loss
from nemo_diffgemma.training.batches import Batch, BatchOrder, Collator, TrainingBatches, ValidationBatches
from nemo_diffgemma.training.data import Example
from nemo_diffgemma.training.ending import NotFinite
from nemo_diffgemma.training.finite import first_gradient, first_layer
from nemo_diffgemma.training.initial_weights import initialise, load_weights
from nemo_diffgemma.training.masks import canvas_positions, denoise_masks
from nemo_diffgemma.training.muon import Muon
from nemo_diffgemma.training.network import build_network, materialise
from nemo_diffgemma.training.settings import TrainConfig
from nemo_diffgemma.training.signals import SIGNALS, StopSignals
from nemo_diffgemma.training.strategy import AutoModelStrategy, clip_gradients


class DiffusionGemmaModel(ModelPT):  # type: ignore[misc]
    """DiffusionGemma under Lightning.

    Args:
        config: the run.
        train, validation: conversations as token ids.
        signals: what may tell this process to stop.
        trainer: Lightning's trainer.
    """

    def __init__(
        self,
        config: TrainConfig,
        train: Sequence[Example],
        validation: Sequence[Example],
        signals: StopSignals,
        trainer: Any = None,
    ):
        super().__init__(DictConfig({"architecture": config.arch.as_dict()}), trainer)
        self.config, self.train_examples, self.validation_examples = config, train, validation
        self._signals = signals
        self.net: Any = None
        self.parts: dict[str, float] = {}
        self.stop_signal = 0  # number of a signal that came to any process before this step's loss was summed
        self._validation: list[Tensor] = []

    # -- network ------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build, shard, allocate and fill the network (Lightning's hook; runs once on every process)."""
        if self.net is not None:
            return
        strategy = self.trainer.strategy
        net = build_network(self.config.arch, self.config.optim.train_router)
        if isinstance(strategy, AutoModelStrategy):
            net = strategy.parallelize(net)
        materialise(net, strategy.root_device)
        if self.config.init_from is None:
            initialise(net, self.config.seed)
        else:
            load_weights(net, Checkpoint(self.config.init_from))
        self.net = net.train()

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Diffusion and autoregressive loss of one batch, over the denominators of the whole step."""
        arch = self.config.arch
        sequence, canvas = batch.ids.shape[1], batch.noisy.shape[1]
        output = self.net(
            batch.ids,
            canvas_ids=batch.noisy,
            encoder_padding_mask=batch.padding,
            decoder_position_ids=canvas_positions(batch.block_start, canvas),
            decoder_attention_mask=denoise_masks(
                batch.block_start, sequence, canvas, arch.sliding_window, torch.float32
            ),
            do_self_conditioning=batch.self_condition,
        )
        supervised = batch.counted[:, None].expand_as(batch.clean)
        real = ~batch.padding & batch.counted[:, None]
        diffusion = diffusion_loss(output.logits, batch.clean, supervised, batch.total_canvas)
        autoregressive = autoregressive_loss(output.encoder_logits, batch.ids, real, batch.total_pairs)
        return diffusion, autoregressive

    # -- training and validation --------------------------------------------------------

    def training_step(self, batch: Batch) -> Tensor:
        """Loss of one step. Each process's share is scaled up because gradients are averaged over processes.

        Raises:
            NotFinite: in every process, when the loss of any is not finite.
        """
        diffusion, autoregressive = self(batch)
        loss: Tensor = diffusion + self.config.optim.autoregressive_weight * autoregressive
        came = [loss.new_tensor(float(number == self._signals.received)) for number in SIGNALS]
        total, diffusion, autoregressive, *stops = self._summed(loss, diffusion, autoregressive, *came).tolist()
        self.stop_signal = next((int(n) for n, stop in zip(SIGNALS, stops, strict=True) if stop), 0)
        if not math.isfinite(total):
            where = first_layer(self.net, lambda: self(batch))
            raise NotFinite(f"the loss is {total}", self.trainer.global_step + 1, where)
        rate = self.trainer.optimizers[0].param_groups[-1]["lr"]
        self.parts = {"loss": total, "diffusion": diffusion, "autoregressive": autoregressive, "lr": rate}
        self.log_dict({f"train_{name}": value for name, value in self.parts.items()})
        return loss * int(self.world_size)

    def on_validation_model_eval(self) -> None:
        """Stay in training mode: there is no dropout, and AutoModel computes the encoder's logits only there."""

    def on_validation_model_train(self) -> None:
        """Nothing to go back from."""

    def validation_step(self, batch: Batch) -> None:
        """Adds up the diffusion loss of this batch and its supervised positions."""
        diffusion, _ = self(batch)
        self._validation.append(torch.stack([diffusion * batch.total_canvas, batch.total_canvas / self.world_size]))

    def on_validation_epoch_end(self) -> None:
        """Mean diffusion loss over all supervised positions, in nats per token."""
        loss, count = self._summed(*torch.stack(self._validation).sum(0)).tolist()
        self._validation.clear()
        if not math.isfinite(loss):
            raise NotFinite(f"the validation loss is {loss}", self.trainer.global_step, "the validation examples")
        self.log("val_loss", loss / count)

    def _summed(self, *values: Tensor) -> Tensor:
        total = torch.stack([v.detach().float() for v in values])
        if dist.is_initialized():
            dist.all_reduce(total)
        return total

    # -- data ---------------------------------------------------------------------------

    def setup_training_data(self, _config: Any = None) -> None:
        """Batches from the step the trainer is at (NeMo's interface)."""
        data, seed = self.config.data, self.config.seed
        order = BatchOrder(self.train_examples, data.batch, seed)
        dataset = TrainingBatches(self._collator(self.train_examples), order, lambda: self.trainer.global_step)
        self._train_dl = DataLoader(dataset, batch_size=None)

    def setup_validation_data(self, _config: Any = None) -> None:
        """All validation examples, in batches of the training size (NeMo's interface)."""
        dataset = ValidationBatches(self._collator(self.validation_examples), self.config.data.batch)
        self._validation_dl = DataLoader(dataset, batch_size=None)

    def _collator(self, examples: Sequence[Example]) -> Collator:
        arch = self.config.arch
        return Collator(
            examples=examples,
            canvas=arch.canvas_length,
            vocab_size=arch.vocab_size,
            pad=arch.pad_token_id,
            self_conditioning_probability=self.config.optim.self_conditioning_probability,
            seed=self.config.seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )

    def train_dataloader(self) -> Any:
        """Lightning's hook, called after a checkpoint has been restored."""
        self.setup_training_data()
        return self._train_dl

    def val_dataloader(self) -> Any:
        """Lightning's hook."""
        self.setup_validation_data()
        return self._validation_dl

    @classmethod
    def list_available_models(cls) -> list[Any]:
        """None: checkpoints are Hugging Face-layout directories, see ``init_from``."""
        return []

    # -- optimizer ----------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """AdamW with weight decay on matrices only, or Muon; warm-up and schedule by step."""
        optim = self.config.optim
        groups = [
            {"params": found} | settings for found, settings in zip(self._groups(), self._settings(), strict=True)
        ]
        if optim.optimizer == "muon":
            optimizer: torch.optim.AdamW = Muon(groups, betas=optim.betas)
        else:
            optimizer = torch.optim.AdamW(groups, betas=optim.betas)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, optim.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _groups(self) -> list[list[Tensor]]:
        """Trained parameters: matrices, all others; with Muon, matrices of the layers before them."""
        groups: list[list[Tensor]] = [[], [], []]
        for name, parameter in self.net.named_parameters():
            if parameter.requires_grad:
                inner = self.config.optim.optimizer == "muon" and "embed_tokens" not in name
                groups[2 if parameter.dim() < 2 else 0 if inner else 1].append(parameter)
        return groups if self.config.optim.optimizer == "muon" else groups[1:]

    def _settings(self) -> list[dict[str, Any]]:
        """Of each of the groups."""
        optim = self.config.optim
        matrices = {"lr": optim.lr, "weight_decay": optim.weight_decay, "betas": optim.betas}
        if optim.optimizer == "adamw":
            return [matrices, matrices | {"weight_decay": 0.0}]
        inner = matrices | {"lr": optim.matrix_lr, "momentum": optim.momentum, "orthogonal": True}
        return [inner, matrices | {"weight_decay": 0.0}, matrices | {"weight_decay": 0.0}]

    def configure_gradient_clipping(self, _optimizer: Any, **_clipping: Any) -> None:
        """Clip the global norm, with AutoModel's correction for expert parallelism.

        Raises:
            NotFinite: in every process, before an update that would make the weights so.
        """
        mesh = getattr(self.trainer.strategy, "mesh", None)
        norm = clip_gradients(self.net, mesh, self.config.optim.clip_norm)
        if not math.isfinite(norm):
            where = first_gradient(self.net)
            raise NotFinite(f"the norm of the gradients is {norm}", self.trainer.global_step + 1, where)
        self.parts["gradient_norm"] = norm

    def on_train_start(self) -> None:
        """Give a resumed run the rates of its own config: Lightning has just restored those of the run before."""
        optim = self.config.optim
        scheduler, (optimizer,) = self.lr_schedulers(), self.trainer.optimizers
        settings = self._settings()
        scheduler.base_lrs = [found["lr"] for found in settings]
        for group, found in zip(optimizer.param_groups, settings, strict=True):
            group |= found | {"lr": found["lr"] * optim.rate(scheduler.last_epoch), "initial_lr": found["lr"]}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave NeMo's hyperparameters out: torch.load refuses omegaconf's classes, and the run's config has them."""
        for name in (self.CHECKPOINT_HYPER_PARAMS_KEY, self.CHECKPOINT_HYPER_PARAMS_TYPE):
            checkpoint.pop(name, None)
