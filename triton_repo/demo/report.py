"""The demo's figures as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

_SETS = ("held_out", "unseen_wordings")
_ROWS = (
    ("exact_match", "exact match through tritonserver", "{:.3f}"),
    ("steps_per_canvas_mean", "denoising steps per canvas, mean", "{:.2f}"),
    ("tokens_per_step_mean", "tokens per denoising step, mean", "{:.2f}"),
    ("time_to_first_block_ms_p50", "time to first block, median (ms)", "{:.0f}"),
    ("tokens_per_second", "tokens/s, all requests together", "{:.0f}"),
)


def print_tables(report: dict[str, Any], console: Console) -> None:
    """The numbers a newcomer asks for."""
    server = report["server"]
    title = f"{report['in_flight']} requests in flight, {server['name']} {server['version']}"
    console.print(_answers(report, title), _by_kind(report), _seconds(report["seconds"]))


def _answers(report: dict[str, Any], title: str) -> Table:
    held_out, unseen = (report[name] for name in _SETS)
    table = Table("", title=title, title_justify="left")
    table.add_column(f"{held_out['questions']} held-out prompts", justify="right")
    table.add_column(f"{unseen['questions']} in unseen wordings", justify="right")
    for key, label, form in _ROWS:
        table.add_row(label, form.format(held_out[key]), form.format(unseen[key]))
    judge, documents = report["transformers"], report["documents"]
    table.add_row(
        f"exact match of transformers' generate, first {judge['questions']}", f"{judge['exact_match']:.3f}", ""
    )
    right = sum(row["right"] for row in documents)
    table.add_row("documents' examples answered right", f"{right} of {len(documents)}", "")
    return table


def _by_kind(report: dict[str, Any]) -> Table:
    held_out, unseen = (report[name]["by_kind"] for name in _SETS)
    table = Table("kind", title="By kind: exact match, denoising steps per canvas", title_justify="left")
    for name in ("held-out", "steps", "unseen wordings", "steps"):
        table.add_column(name, justify="right")
    for kind in sorted(held_out.keys() | unseen.keys()):
        table.add_row(kind, *_cells(held_out.get(kind)), *_cells(unseen.get(kind)))
    return table


def _cells(figures: dict[str, Any] | None) -> tuple[str, str]:
    if figures is None:
        return "", ""
    return f"{figures['exact_match']:.3f}", f"{figures['steps_per_canvas_mean']:.1f}"


def _seconds(seconds: dict[str, float]) -> Table:
    table = Table("stage", title="Where the time went", title_justify="left")
    table.add_column("seconds", justify="right")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}", style="bold" if name == "total" else None)
    return table
