"""Who started this process, which of the run's it is, and whether that fits the run."""

from __future__ import annotations

import os
import signal

from nemo_diffgemma import processes
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.training.settings import Parallel

# Lightning, too, takes jobs of these names for somebody's shell, in which Slurm started nothing
_SHELLS = ("bash", "interactive")
_SRUN = "srun --ntasks-per-node=N diffgemma-train ..., or unset SLURM_NTASKS to start the processes without Slurm"
_PARENT = "DIFFGEMMA_TRAIN_PARENT"


def started_outside() -> bool:
    """Whether torchrun or Slurm's srun started all processes of this run; else it starts its own."""
    return "TORCHELASTIC_RUN_ID" in os.environ or _in_slurm()


def is_first() -> bool:
    """Whether this is process 0 of the run: the one that writes and speaks."""
    if launched_by_run():
        return False
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) if started_outside() else "0"
    return rank == "0" and os.environ.get("NODE_RANK", "0") == "0"


def mark_children() -> None:
    """Call before Lightning starts the other processes of ``parallel.devices``: they know their parent by it."""
    if not launched_by_run():
        os.environ[_PARENT] = str(os.getpid())


def launched_by_run() -> bool:
    """Whether the run's first process started this one; what stops both is then said once, by the first."""
    return os.environ.get(_PARENT) == str(os.getppid())


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is gone, however that went."""
    processes.end_with_parent(signal.SIGKILL)
    if not launched_by_run():
        raise SystemExit("the process that started this one is gone")


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
            raise FieldError(
                field="SLURM_NTASKS",
                value=tasks,
                allowed=f"{world}, as parallel.devices times parallel.nodes",
                fix=_SRUN,
            )
        _check_count("Slurm", tasks, tasks // nodes, parallel)
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        name, allowed = os.environ.get("SLURM_JOB_NAME"), f"a name that is none of a shell's ({', '.join(_SHELLS)})"
        raise FieldError(
            field="SLURM_JOB_NAME", value=name, allowed=allowed, fix="srun --job-name=train --ntasks-per-node=N ..."
        )


def _check_count(who: str, world: int, local: int, parallel: Parallel) -> None:
    found = f"{parallel.world_size} (devices {parallel.devices}, nodes {parallel.nodes})"
    name = "fsdp2" if parallel.name == "single" else parallel.name
    fix = f"pass parallel={name} parallel.devices={local} parallel.nodes={world // local}"
    fix = fix if world > 1 else f"start {parallel.world_size} of them"
    allowed = f"the {world} processes that {who} started"
    require(
        parallel.world_size == world and parallel.devices == local,
        field="parallel",
        value=found,
        allowed=allowed,
        fix=fix,
    )


def _in_slurm() -> bool:
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in _SHELLS
