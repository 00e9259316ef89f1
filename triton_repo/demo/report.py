"""What the demo leaves: a table, report.json, report.png."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_ROWS = (
    ("exact_match", "exact match through tritonserver", "{:.3f}"),
    ("exact_match_transformers", "exact match of transformers' generate", "{:.3f}"),
    ("steps_per_canvas_mean", "denoising steps per canvas, mean", "{:.2f}"),
    ("tokens_per_step_mean", "tokens a denoising step, mean", "{:.2f}"),
    ("time_to_first_block_ms_p50", "time to first block, median (ms)", "{:.0f}"),
    ("tokens_per_second", "tokens/s, all requests together", "{:.0f}"),
)


def print_table(report: dict[str, Any], console: Console) -> None:
    """The numbers a newcomer asks for, as a table."""
    server = report["server"]
    title = (
        f"{report['questions']} held-out prompts, {report['in_flight']} in flight, {server['name']} {server['version']}"
    )
    table = Table(title=title, title_justify="left", show_header=False)
    for key, label, form in _ROWS:
        table.add_row(label, form.format(report[key]))
    console.print(table)


def write_json(report: dict[str, Any], path: Path) -> None:
    """The whole report, wrong answers included."""
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def entropy_by_step(curves: Sequence[Sequence[float]]) -> list[float]:
    """Mean entropy (nats) over all canvases still running, by denoising step."""
    longest = max(len(curve) for curve in curves)
    return [statistics.fmean(c[step] for c in curves if len(c) > step) for step in range(longest)]


def write_picture(training: dict[str, Any], entropies: Sequence[float], path: Path) -> None:
    """Loss by training step beside mean entropy by denoising step, as a PNG.

    Args:
        training: contents of training.json.
        entropies: nats, by denoising step.
        path: file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    steps = [row["step"] for row in training["losses"]]
    for key, label in (("diffusion", "diffusion"), ("autoregressive", "encoder, next token")):
        left.plot(steps, [row[key] for row in training["losses"]], label=label, linewidth=1)
    if training["validation"]:
        rows = training["validation"]
        left.plot(
            [r["step"] for r in rows], [r["loss"] for r in rows], "o-", label="validation, diffusion", markersize=3
        )
    left.set(title="Training", xlabel="step", ylabel="loss (nats per token)", yscale="log")
    left.legend()
    right.plot(range(1, len(entropies) + 1), entropies, "o-")
    right.set(title="Denoising", xlabel="denoising step", ylabel="mean entropy of the canvas (nats)", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
