"""The demo as a picture: a canvas at each denoising step, above what was learnt and how long denoising takes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triton_repo.demo.trace import Canvas

_WIDTH = 14.0  # inches
_MOST_ROWS = 16
_LEFT, _RIGHT = 0.75, 1.0  # inches beside the canvas: step numbers, colour bar
_LARGEST, _SMALLEST = 11.0, 7.0  # points of the tokens
_CHARACTER = 0.602  # width of a DejaVu Sans Mono character, of its size in points
_CERTAIN, _LEAST = 1e-3, 1e-6  # nats: the colour bar's lower end; smallest of the curve
_VISIBLE = str.maketrans({" ": "\N{MIDDLE DOT}", "\n": "\N{RETURN SYMBOL}", "$": r"\$"})


def entropy_by_step(curves: Sequence[Sequence[float]]) -> list[float]:
    """Mean entropy (nats) over all canvases still running, by denoising step."""
    longest = max(len(curve) for curve in curves)
    return [statistics.fmean(c[step] for c in curves if len(c) > step) for step in range(longest)]


def write_picture(
    canvas: Canvas,
    training: Mapping[str, Any],
    entropies: Sequence[float],
    by_kind: Mapping[str, Mapping[str, float]],
    path: Path,
) -> None:
    """A PNG of 1,680 pixels in width.

    Args:
        canvas: shown at its steps.
        training: contents of training.json.
        entropies: mean over canvases in nats, by denoising step.
        by_kind: ``steps_per_canvas_mean`` of each kind of question.
        path: file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = shown_rows(len(canvas.steps))
    above = 0.3 * len(rows) + 1.3
    figure = pyplot.figure(figsize=(_WIDTH, above + 3.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    top, bottom = figure.subfigures(2, 1, height_ratios=(above, 3.8))
    _draw_canvas(top, canvas, rows)
    curve, steps, kinds = bottom.subplots(1, 3, width_ratios=(4, 4, 3))
    _draw_training(curve, training)
    steps.plot(range(1, len(entropies) + 1), [max(e, _LEAST) for e in entropies], "o-", markersize=4)
    steps.set(title="Denoising, all kinds", xlabel="denoising step", yscale="log")
    steps.set(ylabel="mean entropy of running canvases (nats)")
    names = sorted(by_kind, key=lambda name: by_kind[name]["steps_per_canvas_mean"])
    bars = kinds.barh(names, [by_kind[name]["steps_per_canvas_mean"] for name in names])
    kinds.bar_label(bars, fmt="%.1f", padding=3)
    kinds.margins(x=0.2)
    kinds.set(title="Steps per canvas, by kind", xlabel="mean of held-out prompts")
    for axes in (curve, steps):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def shown_rows(steps: int) -> list[int]:
    """Indices of the steps that a picture has room for: all, or first, last and evenly between them."""
    if steps <= _MOST_ROWS:
        return list(range(steps))
    return [round(i * (steps - 1) / (_MOST_ROWS - 1)) for i in range(_MOST_ROWS)]


def settled(canvas: Canvas) -> list[list[bool]]:
    """Of each step and position, whether the token is the committed one from there on."""
    found: list[list[bool]] = []
    after = [True] * len(canvas.steps[-1].tokens)
    for step in reversed(canvas.steps):
        after = [a and t == last for a, t, last in zip(after, step.tokens, canvas.steps[-1].tokens, strict=True)]
        found.append(after)
    return found[::-1]


def _draw_canvas(figure: Any, canvas: Canvas, rows: Sequence[int]) -> None:
    """A row a step; columns as wide as their widest token."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    texts = [[token.translate(_VISIBLE) for token in canvas.steps[i].tokens] for i in rows]
    widths = [1 + max(map(len, column)) for column in zip(*(map(_bare, row) for row in texts), strict=True)]
    points = 72 * (_WIDTH - _LEFT - _RIGHT) / _CHARACTER
    while points / sum(widths) < _SMALLEST:  # what is too long for the page is cut
        widths.pop()
    size = min(_LARGEST, points / sum(widths))
    axes = figure.add_subplot()
    highest = max(e for step in canvas.steps for e in step.entropies)
    scale: Any = ScalarMappable(LogNorm(_CERTAIN, max(highest, 10 * _CERTAIN), clip=True), "YlOrRd")
    final = settled(canvas)
    for y, i in enumerate(rows):
        left = 0.0
        for x, width in enumerate(widths):
            color = scale.to_rgba(canvas.steps[i].entropies[x])
            done = final[i][x]
            axes.add_patch(Rectangle((left, y - 0.45), width, 0.9, facecolor=color, edgecolor="white", linewidth=1))
            light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 0.45
            axes.text(
                left + width / 2,
                y + 0.02,
                texts[y][x],
                ha="center",
                va="center",
                family="monospace",
                size=size,
                weight="bold" if done else "normal",
                style="normal" if done else "italic",
                color=("black" if light else "white") if done else ("#7a6a55" if light else "#ffe0d0"),
            )
            left += width
    length = points / size  # so that a character is as wide on the page as its column is in these units
    axes.set(xlim=(0, length), ylim=(len(rows) - 0.5, -0.5), xticks=[])
    axes.set_yticks(range(len(rows)), [f"step {i + 1}" for i in rows])
    axes.tick_params(left=False)
    axes.spines[:].set_visible(False)
    axes.set_title(
        f"A canvas of {canvas.length} tokens while it is denoised. Asked: {canvas.prompt}".replace("$", r"\$"),
        loc="left",
    )
    axes.set_xlabel(
        "bold: the token stays from here on, and is committed after the last step; italic: it still changes"
    )
    figure.colorbar(scale, ax=axes, label="token entropy (nats)", pad=0.01, fraction=0.03)


def _bare(text: str) -> str:
    return text.replace("\\$", "$")


def _draw_training(axes: Any, training: Mapping[str, Any]) -> None:
    steps = [row["step"] for row in training["losses"]]
    for key, label in (("diffusion", "diffusion"), ("autoregressive", "encoder, next token")):
        axes.plot(steps, [row[key] for row in training["losses"]], label=label, linewidth=1)
    rows = training["validation"]
    if rows:
        axes.plot(
            [r["step"] for r in rows], [r["loss"] for r in rows], "o-", label="validation, diffusion", markersize=3
        )
    axes.set(title="Training", xlabel="step", ylabel="loss (nats per token)", yscale="log")
    axes.legend()
