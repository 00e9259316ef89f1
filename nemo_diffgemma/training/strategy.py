"""Lightning strategies: one process, or FSDP2 with optional expert parallelism through NeMo AutoModel."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from nemo_automodel.components.distributed.config import FSDP2Config, MoEParallelizerConfig
from nemo_automodel.components.distributed.mesh import MeshContext, ParallelismSizes
from nemo_automodel.components.distributed.model_parallelizer import parallelize_model
from nemo_automodel.components.training.utils import scale_grads_and_clip_grad_norm
from torch.distributed.fsdp import MixedPrecisionPolicy

from nemo_diffgemma.machine import writing
from nemo_diffgemma.training.checkpoint_files import put_checkpoint
from nemo_diffgemma.training.settings import Parallel


def compute_dtype(parallel: Parallel, cuda: bool) -> torch.dtype:
    """Dtype of the matrix products; parameters, gradients and optimizer states are float32 whatever it is."""
    automatic = "bfloat16" if cuda else "float32"
    name = automatic if parallel.compute_dtype == "auto" else parallel.compute_dtype
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


class AutoModelStrategy(ModelParallelStrategy):  # type: ignore[misc]
    """FSDP2 over all processes; with expert parallelism, experts divided and everything else sharded.

    Args:
        parallel: sizes of the run.
        dtype: dtype of the matrix products.
    """

    def __init__(self, parallel: Parallel, dtype: torch.dtype):
        super().__init__(data_parallel_size=parallel.world_size, tensor_parallel_size=1)
        self._parallel, self._dtype = parallel, dtype
        self.mesh: Any = None

    def meet(self) -> None:
        """Start the process group ahead of time, for a barrier before the fit; the fit then uses it."""
        self._setup_distributed()

    def setup_environment(self) -> None:
        """Start the process group, then build AutoModel's meshes."""
        super().setup_environment()
        # AutoModel's own default computes in bfloat16, on a CPU too
        policy = MixedPrecisionPolicy(param_dtype=self._dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        experts = self._parallel.expert_parallel
        self.mesh = MeshContext.build(
            FSDP2Config(mp_policy=policy),
            ParallelismSizes(ep_size=experts),
            moe_parallel_config=MoEParallelizerConfig(mp_policy=policy) if experts > 1 else None,
            activation_checkpointing=self._parallel.activation_checkpointing,
        )

    def parallelize(self, net: Any) -> Any:
        """Shard a network that may still be on the meta device."""
        return parallelize_model(net, self.mesh)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write the sharded checkpoint beside ``filepath``, then rename: a killed run leaves the last one whole."""
        path = Path(self.broadcast(filepath))
        partial = path.with_name(f".{path.name}.shards.partial")
        if self.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)
        self.barrier()
        try:
            with writing(path):
                super().save_checkpoint(checkpoint, partial, storage_options)
                self.barrier()
                if self.is_global_zero:
                    put_checkpoint(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # the room it took may be what is lacking
            raise
        self.barrier()


class ReplicaStrategy(DDPStrategy):  # type: ignore[misc]
    """The whole model in every process; gradients are averaged over all of them."""

    def __init__(self) -> None:
        # one bucket: a small model's gradients go in one message
        super().__init__(gradient_as_bucket_view=True, static_graph=True)

    def meet(self) -> None:
        """Start the process group ahead of time, for a barrier before the fit; the fit then uses it."""
        self.setup_environment()


class AtomicCheckpointIO(TorchCheckpointIO):  # type: ignore[misc]
    """One-process training checkpoints, put in place with a rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, **_options: Any) -> None:
        """Write beside ``path``, flush to disk, rename."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.whole.partial")
        try:
            with writing(path):
                with partial.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                put_checkpoint(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def clip_gradients(net: Any, mesh: Any, clip_norm: float) -> float:
    """Bring expert-parallel gradients to the scale of the others, clip the global norm; returns the norm.

    Plain clipping is wrong under expert parallelism: an expert's gradient is summed over processes where all others
    are averaged, and its norm is spread over them.
    """
    experts = mesh is not None and mesh.moe_mesh is not None
    norm = scale_grads_and_clip_grad_norm(
        clip_norm,
        [net],
        device_mesh=mesh.device_mesh if mesh is not None else None,
        moe_mesh=mesh.moe_mesh if experts else None,
        ep_axis_name="ep" if experts else None,
        dp_group_size=dist.get_world_size() if experts else None,
    )
    return float(norm)
