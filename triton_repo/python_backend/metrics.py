"""The metrics that the served model exports: one list, and what puts their values into Triton's ``/metrics``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Kind = Literal["counter", "gauge", "histogram"]
Outcome = Literal["stop", "length", "cancelled", "deadline", "error", "refused", "unavailable"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

_WAITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_STEPS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128)


@dataclass(frozen=True)
class Metric:
    """One metric family.

    Args:
        name: as Prometheus shows it; a histogram's is its base name.
        kind: its type.
        about: its help text, with the unit.
        labels: label names. All but the last say which model it is; the last has ``values``.
        values: every value of the last label; each is exported from the start, so that rates begin at zero.
        buckets: upper bounds, of a histogram.
    """

    name: str
    kind: Kind
    about: str
    labels: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: tuple[Metric, ...] = (
    Metric(
        "nv_trt_llm_request_metrics",
        "gauge",
        "Requests by state: waiting for a slot; context: prompt being encoded; scheduled: worked on in the engine's "
        "last iteration; active: holding a slot; max: slots",
        ("model", "version", "request_type"),
        ("waiting", "context", "scheduled", "active", "max"),
    ),
    Metric(
        "nv_trt_llm_kv_cache_block_metrics",
        "gauge",
        "Blocks of the key/value cache: max; used: held by running requests; free: the rest, what is kept for later "
        "prompts included; tokens_per: tokens per block; fraction: used over max, 0 to 1, which the Gateway API's "
        "inference extension reads",
        ("model", "version", "kv_cache_block_type"),
        ("max", "used", "free", "tokens_per", "fraction"),
    ),
    Metric("diffgemma_requests_total", "counter", "Requests that ended, by outcome", ("outcome",), OUTCOMES),
    Metric(
        "diffgemma_queue_seconds",
        "histogram",
        "Seconds from arrival in the engine to a slot, or to the end of a request that never got one",
        buckets=_WAITS,
    ),
    Metric(
        "diffgemma_time_to_first_block_seconds",
        "histogram",
        "Seconds from arrival in the engine to the first committed block",
        buckets=_WAITS,
    ),
    Metric(
        "diffgemma_block_seconds",
        "histogram",
        "Seconds from one committed block of a request to its next",
        buckets=_WAITS,
    ),
    Metric(
        "diffgemma_request_seconds",
        "histogram",
        "Seconds from arrival in the engine to the end",
        buckets=_WAITS,
    ),
    Metric("diffgemma_queue_seconds_total", "counter", "Seconds that requests waited for a slot, so far"),
    Metric("diffgemma_compute_seconds_total", "counter", "Seconds that requests held a slot, so far"),
    Metric("diffgemma_denoising_steps", "histogram", "Denoising steps of a finished canvas", buckets=_STEPS),
    Metric(
        "diffgemma_canvases_total",
        "counter",
        "Canvases that were finished, by what ended them: they converged, or max_denoising_steps was reached",
        ("ended",),
        ("converged", "step_cap"),
    ),
    Metric(
        "diffgemma_denoising_steps_total",
        "counter",
        "Denoising steps done, each canvas of a batch counted; moves while a canvas is denoised",
    ),
    Metric("diffgemma_accepted_tokens_total", "counter", "Canvas positions accepted, over all denoising steps"),
    Metric("diffgemma_output_tokens_total", "counter", "Tokens committed, also for requests that did not end well"),
    Metric("diffgemma_input_tokens_total", "counter", "Prompt tokens of requests that got a slot"),
    Metric("diffgemma_reused_tokens_total", "counter", "Of them, found in the cache of an earlier request"),
)
BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}


class Metrics:
    """Their values. Not thread-safe, and Triton's own are not either: one thread may use it, after it was made.

    Each call into Triton is a round trip to tritonserver. So counts and gauges wait for :meth:`flush`, and only what
    changed is sent; an observation of a histogram goes out at once.

    Args:
        backend: ``triton_python_backend_utils``, of a python backend that has histograms (24.10 and newer).
        model: values of the labels ``model`` and ``version``.
    """

    def __init__(self, backend: Any, model: Mapping[str, str]):
        kinds = {
            "counter": backend.MetricFamily.COUNTER,
            "gauge": backend.MetricFamily.GAUGE,
            "histogram": backend.MetricFamily.HISTOGRAM,
        }
        # a family that is collected takes its metrics with it
        self._families = [backend.MetricFamily(m.name, m.about, kinds[m.kind]) for m in METRICS]
        self._series: dict[tuple[str, str], Any] = {}
        for metric, family in zip(METRICS, self._families, strict=True):
            buckets = {"buckets": list(map(float, metric.buckets))} if metric.buckets else {}
            for value in metric.values or ("",):
                labels = {n: value if n == metric.labels[-1] else model[n] for n in metric.labels}
                self._series[metric.name, value] = family.Metric(labels=labels, **buckets)
        self._added: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._set: dict[tuple[str, str], float] = {}
        self._shown: dict[tuple[str, str], float] = {}

    def count(self, name: str, value: float = 1.0, label: str = "") -> None:
        """Add ``value``, not negative, to a counter at the next :meth:`flush`."""
        self._added[name, label] += value

    def set(self, name: str, value: float, label: str = "") -> None:
        """Set a gauge at the next :meth:`flush`."""
        self._set[name, label] = value

    def observe(self, name: str, value: float) -> None:
        """Add an observation to a histogram."""
        self._series[name, ""].observe(value)

    def flush(self) -> None:
        """Send what changed to Triton."""
        added, self._added = self._added, defaultdict(float)
        for key, value in added.items():
            if value:
                self._series[key].increment(value)
        for key, value in self._set.items():
            if self._shown.get(key) != value:
                self._series[key].set(value)
                self._shown[key] = value
