"""The machine at hand: its GPU, the CPUs and the memory that this process may take."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

_CGROUP = Path("/sys/fs/cgroup")
# version 2, then version 1: the limit, and what is not file cache
_LIMITS = (("memory.max", "memory.stat", "anon"), ("memory/memory.limit_in_bytes", "memory/memory.stat", "rss"))


def has_gpu(sm: int) -> bool:
    """Whether this machine has a CUDA GPU of compute capability ``sm`` (90 for 9.0)."""
    import torch  # what only asks for CPUs starts ten times faster without it

    return torch.cuda.is_available() and torch.cuda.get_device_capability() == divmod(sm, 10)


def this_machine() -> dict[str, Any]:
    """What a bundle for the CPU is for: instruction set and its extensions, and operating system."""
    features = sorted(name for name in _cpu_flags() if name.startswith(("avx", "amx", "fma", "asimd", "sve", "bf16")))
    return {"kind": "cpu", "machine": platform.machine(), "system": platform.system(), "features": features}


def _cpu_flags() -> set[str]:
    """Extensions of the instruction set, as Linux names them; none where it cannot be asked."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    found = (line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features")))
    return set(next(found, "").split())


def available_cpus() -> frozenset[int]:
    """Their numbers: those of the machine, less what a container, ``taskset`` or a parent keeps for others."""
    return frozenset(os.sched_getaffinity(0))


def beside_the_engine() -> frozenset[int]:
    """Those for what serves an engine: all but one, if there are several.

    The engine computes all the time, and whoever has something to do on its CPU holds it up and fills its caches. It
    is not tied to the CPU that is left: others than this service may want that one.
    """
    have = available_cpus()
    return have - {max(have)} or have


def all_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes: the machine's, or a container's limit.

    Args:
        cgroup: where the control groups are mounted; in a container the root is its own.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, _, _ in _LIMITS:
        if (cgroup / limit).is_file() and (most := (cgroup / limit).read_text().strip()) != "max":
            memory = min(memory, int(most))
    return memory


def free_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes: the machine's free ones, or what a container's limit leaves of them.

    Args:
        cgroup: where the control groups are mounted; in a container the root is its own.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, statistics, used in _LIMITS:
        if not (cgroup / limit).is_file():
            continue
        most = (cgroup / limit).read_text().strip()
        if most != "max":
            taken = dict(line.split() for line in (cgroup / statistics).read_text().splitlines())
            free = min(free, max(0, int(most) - int(taken[used])))
    return free
