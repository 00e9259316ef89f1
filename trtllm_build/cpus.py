"""The CPUs that this process may run on, and those of them for what runs beside an engine."""

from __future__ import annotations

import os


def available() -> frozenset[int]:
    """Their numbers: those of the machine, less what a container, ``taskset`` or a parent keeps for others."""
    return frozenset(os.sched_getaffinity(0))


def beside_the_engine() -> frozenset[int]:
    """Those for what serves an engine: all but one, if there are several.

    The engine computes all the time, and whoever has something to do on its CPU holds it up and fills its caches. It
    is not tied to the CPU that is left: others than this service may want that one.
    """
    have = available()
    return have - {max(have)} or have
