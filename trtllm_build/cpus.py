"""The CPUs that this process may run on, and who goes first on them."""

from __future__ import annotations

import os

from nemo_diffgemma.errors import FieldError, require


def available() -> frozenset[int]:
    """Their numbers: those of the machine, less what a container, ``taskset`` or a parent keeps for others."""
    return frozenset(os.sched_getaffinity(0))


def wait_for_turn(thread: int = 0) -> None:
    """From now on ``thread`` (0: this one), and what it starts, waits until a CPU is free or whoever has it has had
    its turn: ``SCHED_BATCH``, see ``man 7 sched``.

    Linux lets others in as soon as they have something to do, and the engine, which computes all the time, is held up.
    """
    os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))


def interrupt() -> None:
    """From now on this thread, and what it starts, does not: Linux's default, ``SCHED_OTHER``."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def some_of_them(field: str, text: str) -> frozenset[int]:
    """Read a list of CPUs as ``taskset -c`` takes it; others must be left over.

    Args:
        field: what it is called in an error.
        text: numbers and ranges, such as ``1`` or ``2-5,7``.

    Raises:
        FieldError: when it is no such list, or not a proper part of :func:`available`.
    """
    have = available()
    allowed = f"numbers and ranges of {_shown(have)}, not all of them"
    remedy = f"pass {field} {max(have)}" if len(have) > 1 else "leave it out: there is one CPU only"
    try:
        bounds = [part.partition("-") for part in text.split(",")]
        spans = [(int(low), int(high if dash else low)) for low, dash, high in bounds]
    except ValueError as error:
        raise FieldError(field, text, allowed, remedy) from error
    asked = frozenset(cpu for cpu in have if any(low <= cpu <= high for low, high in spans))
    every = len(asked) == sum(high - low + 1 for low, high in spans)
    require(every and frozenset() < asked < have, field, text, allowed, remedy)
    return asked


def _shown(cpus: frozenset[int]) -> str:
    return ",".join(map(str, sorted(cpus)))
