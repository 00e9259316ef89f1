"""What the outside learns of the service: fed by the courier's thread, from the engine's events and its progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from triton_repo.python_backend.metrics import Metrics
from triton_repo.python_backend.record import Record, Recorder
from trtllm_build.runtime.request import Block
from trtllm_build.runtime.scheduler import Occupancy
from trtllm_build.runtime.stats import Progress

# Gauges and counters are brought up to date this often.
REFRESH_S = 0.2
_COUNTERS = {
    "denoising_steps": "diffgemma_denoising_steps_total",
    "accepted_tokens": "diffgemma_accepted_tokens_total",
    "output_tokens": "diffgemma_output_tokens_total",
    "input_tokens": "diffgemma_input_tokens_total",
    "reused_tokens": "diffgemma_reused_tokens_total",
    "queue_seconds": "diffgemma_queue_seconds_total",
    "compute_seconds": "diffgemma_compute_seconds_total",
}


class Telemetry:
    """One thread calls it: Triton's metrics bear no other.

    Args:
        metrics: to be kept up to date.
        progress: asks the engine how far it is.
        recorder: gets a record of every request.
    """

    def __init__(self, metrics: Metrics, progress: Callable[[], Progress], recorder: Recorder):
        self._metrics = metrics
        self._recorder = recorder
        self._progress = progress
        self._refreshed = float("-inf")
        self._counted = asdict(progress().work)  # a warm-up came from no client

    def block(self, block: Block) -> None:
        """A block came; the last of a request may be no canvas."""
        if block.denoising_steps == 0:
            return
        name = "diffgemma_block_seconds" if block.canvas_index else "diffgemma_time_to_first_block_seconds"
        self._metrics.observe(name, block.seconds)
        self._metrics.observe("diffgemma_denoising_steps", block.denoising_steps)
        self._metrics.count("diffgemma_canvases_total", label="converged" if block.converged else "step_cap")

    def ended(self, record: Record) -> None:
        """A request ended."""
        self._recorder.put(record)
        self._metrics.count("diffgemma_requests_total", label=record.outcome)
        if (stats := record.stats) is not None:
            waited = stats.seconds if stats.queue_seconds is None else stats.queue_seconds
            self._metrics.observe("diffgemma_queue_seconds", waited)
            self._metrics.observe("diffgemma_request_seconds", stats.seconds)

    def refresh(self, now: float) -> None:
        """Bring the numbers up to date if they are older than :data:`REFRESH_S`; ``now`` in seconds."""
        if now - self._refreshed < REFRESH_S:
            return
        self._refreshed = now
        progress = self._progress()
        self._gauges(progress.occupancy)
        # not asdict: this runs beside the engine, several times a second
        for field, name in _COUNTERS.items():
            value = getattr(progress.work, field)
            # several sums of the same seconds can differ in their last bit
            if value > self._counted[field]:
                self._metrics.count(name, value - self._counted[field])
                self._counted[field] = value
        self._metrics.flush()

    def _gauges(self, now: Occupancy) -> None:
        requests: dict[str, float] = {
            "waiting": now.waiting,
            "context": now.prefilling,
            "scheduled": now.scheduled,
            "active": now.running,
            "max": now.slots,
        }
        blocks: dict[str, float] = {
            "max": now.pages,
            "used": now.used_pages,
            "free": now.pages - now.used_pages,
            "tokens_per": now.page_tokens,
            "fraction": now.used_pages / now.pages,
        }
        for label, value in requests.items():
            self._metrics.set("nv_trt_llm_request_metrics", value, label)
        for label, value in blocks.items():
            self._metrics.set("nv_trt_llm_kv_cache_block_metrics", value, label)
