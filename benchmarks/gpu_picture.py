"""The GPU benchmark as a picture: steps beside their floors, and tokens per second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot


def write_picture(steps: Sequence[Mapping[str, Any]], speeds: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for prompt in sorted({r["prompt"] for r in steps}):
        rows = [r for r in steps if r["prompt"] == prompt]
        batches = [r["batch"] for r in rows]
        (line,) = left.plot(batches, [r["step_on_device_ms"] for r in rows], marker="o", label=f"prompt {prompt:,}")
        left.plot(batches, [r["floor_ms"] for r in rows], linestyle=":", color=line.get_color())
    left.set(xlabel="canvases per step", ylabel="ms", title="a denoising step; dotted: what its bytes allow")
    left.set_xscale("log", base=2)
    left.set_ylim(bottom=0)
    left.legend()
    bars = right.barh([r["what"] for r in speeds], [r["tokens_per_second"] for r in speeds])
    right.bar_label(bars, fmt="{:,.0f}")
    right.invert_yaxis()
    right.set(xlabel="tokens/s", title="whole answers")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
