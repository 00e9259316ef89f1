"""Who started this process, and whether that fits the run: torchrun and Slurm start all processes, else we do."""

from __future__ import annotations

import os
import sys
import time
from typing import NoReturn

from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.training.config import Parallel

# Lightning, too, takes jobs of these names for somebody's shell, in which Slurm started nothing
_SHELLS = ("bash", "interactive")
_SRUN = "srun --ntasks-per-node=N diffgemma-train ..., or unset SLURM_NTASKS to start the processes without Slurm"
_FIRST_S = 30.0  # in which the first process has said what is wrong


def first_process() -> bool:
    """Whether this process speaks for all: the first one of the run, as far as its launcher says."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", _slurm("SLURM_PROCID")))


def exit_with(error: FieldError) -> NoReturn:
    """Say what is wrong, once for all processes of a machine, and exit with status 2.

    The others wait for the first one to end: their launcher ends them all as soon as one has, and what the first one
    has to say would be lost.
    """
    if any(os.environ.get(name, "0") != "0" for name in ("LOCAL_RANK", _slurm("SLURM_LOCALID"))):
        time.sleep(_FIRST_S)
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(2)


def check_launcher(parallel: Parallel) -> None:
    """Compare the number of processes that torchrun or Slurm started with the run's.

    Raises:
        FieldError: when they differ, or Slurm started one process where there should be more.
    """
    world = parallel.world_size
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _check_count("torchrun", int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"]), parallel)
    elif _in_slurm():
        tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", "1"))
        if (tasks == 1 and world > 1) or "SLURM_PROCID" not in os.environ:
            raise FieldError("SLURM_NTASKS", tasks, f"{world}, as parallel.devices times parallel.nodes", _SRUN)
        _check_count("Slurm", tasks, tasks // nodes, parallel)
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        name, allowed = os.environ.get("SLURM_JOB_NAME"), f"a name that is none of a shell's ({', '.join(_SHELLS)})"
        raise FieldError("SLURM_JOB_NAME", name, allowed, "srun --job-name=train --ntasks-per-node=N ...")


def _check_count(who: str, world: int, local: int, parallel: Parallel) -> None:
    found = f"{parallel.world_size} (devices {parallel.devices}, nodes {parallel.nodes})"
    name = "fsdp2" if parallel.name == "single" else parallel.name
    remedy = f"pass parallel={name} parallel.devices={local} parallel.nodes={world // local}"
    remedy = remedy if world > 1 else f"start {parallel.world_size} of them"
    allowed = f"the {world} processes that {who} started"
    require(parallel.world_size == world and parallel.devices == local, "parallel", found, allowed, remedy)


def _in_slurm() -> bool:
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in _SHELLS


def _slurm(name: str) -> str:
    """A variable's name, or one that is never set where Slurm did not start this process."""
    return name if _in_slurm() else ""
