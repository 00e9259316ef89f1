"""The figures of a load as a table."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from triton_repo.load.statistics import Distribution, Summary

_COLUMNS = ("mean", "p50", "p90", "p99", "max")


def print_table(summary: Summary, title: str, since: str, console: Console) -> None:
    """Print it.

    Args:
        summary: of the load.
        title: above it.
        since: what the time to first block and the latency are measured from.
        console: to print to.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for column in (*_COLUMNS, "n"):
        table.add_column(column, justify="right", no_wrap=True)
    _row(table, "time to first block, ms", summary.first_block, 1000)
    _row(table, "time a block, ms", summary.block, 1000)
    _row(table, "request latency, ms", summary.latency, 1000)
    _row(table, "sent late, ms", summary.late, 1000)
    _row(table, "tokens/s of a request", summary.request_tokens_per_second, 1)
    _row(table, "denoising steps per canvas", summary.steps_per_canvas, 1)
    console.print(table)
    console.print(f"time to first block and latency are from {since}, time a block from the block before", style="dim")
    line = f"{summary.tokens_per_second:,.1f} tokens/s, {summary.requests_per_second:,.2f} answers/s"
    if summary.tokens_per_step is not None:
        line += f", {summary.tokens_per_step:.2f} tokens per step"
    console.print(f"{line}, in {summary.seconds:,.1f} s")
    errors = ", ".join(f"{count:,} {kind}" for kind, count in summary.errors.items()) or "none"
    console.print(f"{summary.answered:,} of {summary.requests:,} requests answered; errors: {errors}")


def _row(table: Table, label: str, found: Distribution | None, scale: float) -> None:
    if found is None:
        table.add_row(label, *("-" for _ in _COLUMNS), "0")
        return
    values = [scale * getattr(found, column) for column in _COLUMNS]
    table.add_row(
        label, *(f"{value:,.1f}" if value < 1000 else f"{value:,.0f}" for value in values), f"{found.count:,}"
    )
