"""A load as a picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from nemo_diffgemma.errors import require
from triton_repo.bench.record import RequestRecord
from triton_repo.bench.statistics import rate_over_time

_BINS = 40


def check_drawable(path: Path) -> None:
    """Raise FieldError when nothing here can draw."""
    there = importlib.util.find_spec("matplotlib") is not None
    require(
        there,
        field="png",
        value=str(path),
        allowed="a picture needs matplotlib",
        fix="pip install matplotlib, or leave --png out",
    )


def write_picture(records: Sequence[RequestRecord], title: str, path: Path) -> None:
    """Latencies as shares of requests beside throughput over time, as a PNG.

    Args:
        records: of the load.
        title: above both.
        path: file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    good = [record for record in records if record.answered]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    first = [record.first_block_s for record in good if record.first_block_s is not None]
    for values, label in ((first, "first block"), ([record.latency_s for record in good], "whole answer")):
        if values:
            left.ecdf([1000 * value for value in values], label=label)
            left.legend()
    left.set(title="Latency", xlabel="milliseconds", ylabel="share of answers that took at most as long")
    middles, rates = rate_over_time(records, _BINS)
    right.plot(middles, rates, drawstyle="steps-mid")
    failed = [record.ended for record in records if not record.answered]
    if failed:
        right.plot(failed, [0] * len(failed), "x", color="tab:red", label="not answered", clip_on=False)
        right.legend()
    right.set(title="Throughput", xlabel="seconds since the load began", ylabel="tokens per second", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
