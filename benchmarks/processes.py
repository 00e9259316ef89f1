"""What a running tritonserver, the models' processes below it and the engine's take: memory, CPU."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from triton_repo.tensors import MODEL

ENGINE = "engine"


def children(pid: int) -> list[int]:
    """Processes that ``pid`` started and that are still there."""
    found = (path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for pids in found for child in pids]


def tree(pid: int) -> dict[str, int]:
    """tritonserver, each model's process, and the engine's, by name.

    Args:
        pid: tritonserver's.
    """
    found = {"tritonserver": pid}
    for child in children(pid):
        command = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").split("\0")
        # its second argument is the path .../MODEL/1/model.py
        model = next((Path(part).parts[-3] for part in command if part.endswith("/model.py")), str(child))
        found[model] = child
    # beside it are those that read prompts
    commands = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in children(found[MODEL])}
    (found[ENGINE],) = (child for child, command in commands.items() if b"trtllm_build.runtime.process" in command)
    return found


def resident(pid: int) -> int:
    """Resident bytes; 0 for a process that has ended, whether or not its parent knows."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has taken so far, with its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


Turns = dict[str, tuple[int, int]]


def turns(pid: int) -> Turns:
    """Nanoseconds that each thread of a process has computed so far, and that it was ready to but had no CPU."""
    stats = {path.name: (path / "schedstat").read_text().split() for path in Path(f"/proc/{pid}/task").iterdir()}
    return {thread: (int(ran), int(waited)) for thread, (ran, waited, _) in stats.items()}


def held_up(before: Turns, after: Turns) -> float:
    """Share of the time between two :func:`turns` in which the busiest thread was ready, and others had its CPU."""
    ran, waited = max((after[thread][0] - ran, after[thread][1] - waited) for thread, (ran, waited) in before.items())
    return waited / (ran + waited)


class Watch:
    """Samples resident memory from a thread until it is closed; a context manager.

    Args:
        pids: processes by name.
        every_s: seconds between samples.
    """

    def __init__(self, pids: dict[str, int], every_s: float):
        self.at: list[float] = []
        self.bytes: dict[str, list[int]] = {name: [] for name in pids}
        self._pids = pids
        self._every_s = every_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._began = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()

    def growth(self, name: str) -> float:
        """Mean of the last third of the samples over that of the first, less 1."""
        found = self.bytes[name]
        third = max(1, len(found) // 3)
        return sum(found[-third:]) / sum(found[:third]) - 1

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            self.at.append(time.perf_counter() - self._began)
            for name, pid in self._pids.items():
                self.bytes[name].append(resident(pid))
