"""What the server exports, by name: labels with their values, and whether it is a histogram."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Metric:
    """One metric family.

    Args:
        labels: the label that tells its series apart, and its values.
        histogram: whether it has ``_bucket``, ``_sum`` and ``_count``.
    """

    labels: dict[str, set[str]] = field(default_factory=dict)
    histogram: bool = False


_HISTOGRAM = Metric(histogram=True)
EXPORTED = {
    "nv_trt_llm_request_metrics": Metric({"request_type": {"waiting", "context", "scheduled", "active", "max"}}),
    "nv_trt_llm_kv_cache_block_metrics": Metric({"kv_cache_block_type": {"max", "used", "free", "tokens_per"}}),
    "diffgemma_requests_total": Metric(
        {"outcome": {"stop", "length", "cancelled", "deadline", "error", "refused", "unavailable"}}
    ),
    "diffgemma_canvases_total": Metric({"ended": {"converged", "step_cap"}}),
    "diffgemma_queue_seconds": _HISTOGRAM,
    "diffgemma_time_to_first_block_seconds": _HISTOGRAM,
    "diffgemma_block_seconds": _HISTOGRAM,
    "diffgemma_request_seconds": _HISTOGRAM,
    "diffgemma_denoising_steps": _HISTOGRAM,
    "diffgemma_queue_seconds_total": Metric(),
    "diffgemma_compute_seconds_total": Metric(),
    "diffgemma_denoising_steps_total": Metric(),
    "diffgemma_accepted_tokens_total": Metric(),
    "diffgemma_output_tokens_total": Metric(),
    "diffgemma_input_tokens_total": Metric(),
    "diffgemma_reused_tokens_total": Metric(),
}
