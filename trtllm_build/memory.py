"""Memory that this process may still take."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
# version 2, then version 1: the limit, and what is not file cache
_LIMITS = (("memory.max", "memory.stat", "anon"), ("memory/memory.limit_in_bytes", "memory/memory.stat", "rss"))


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
