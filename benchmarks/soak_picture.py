"""Memory and requests over the time of a soak, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.processes import Watch
from benchmarks.soak_traffic import Seen

_BINS = 100


def write_picture(watch: Watch, seen: Seen, path: Path) -> None:
    """Resident memory by process beside requests per second by how they ended, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, values in watch.bytes.items():
        left.plot(watch.at, np.array(values) / 1e6, label=name, linewidth=1)
    left.set(title="Resident memory", xlabel="seconds", ylabel="MB", ylim=(0, None))
    end = max((at for at, _ in seen.ended_at), default=1.0)
    for way in sorted(seen.ends):
        counts, edges = np.histogram([at for at, how in seen.ended_at if how == way], bins=_BINS, range=(0, end))
        right.plot((edges[:-1] + edges[1:]) / 2, counts / (end / _BINS), label=way, linewidth=1)
    right.set(title="Requests", xlabel="seconds", ylabel="ended a second", ylim=(0, None))
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
