"""What the server's metrics say during a soak, and whether it is what the clients saw."""

from __future__ import annotations

import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable

from benchmarks.soak_traffic import Seen

SETTLE_S = 30.0  # for what was cancelled last to end
_LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def adds_up(seen: Seen, served: dict[str, float], alone: bool = True) -> dict[str, bool]:
    """Whether the server counted what the clients saw.

    Of requests whose client went away some had just been answered, and some never reached the model: that is as far as
    the two may differ. Where others asked, too, it has to be that much at least.
    """
    outcomes = {key.partition(" ")[2]: value for key, value in served.items() if key.startswith("diffgemma_requests")}
    answered = outcomes.get("stop", 0) + outcomes.get("length", 0)
    gone = seen.ends["cancelled"]
    if not alone:
        return {
            "metrics: answered": seen.ends["answered"] <= answered,
            "metrics: each finish reason": all(count <= outcomes.get(r, 0) for r, count in seen.reasons.items()),
            "metrics: refused": outcomes.get("refused", -1) >= seen.by_model,
            "metrics: unavailable": outcomes.get("unavailable", -1) >= seen.ends["unavailable"],
            "metrics: no errors": outcomes.get("error", -1) == 0,
            "metrics: tokens": served.get("diffgemma_output_tokens_total", -1) >= seen.tokens,
        }
    return {
        "metrics: answered": seen.ends["answered"] <= answered <= seen.ends["answered"] + gone,
        "metrics: each finish reason": all(
            count <= outcomes.get(reason, 0) <= count + gone for reason, count in seen.reasons.items()
        ),
        "metrics: cancelled": answered + outcomes.get("cancelled", 0) <= seen.ends["answered"] + gone,
        "metrics: refused": outcomes.get("refused", -1) == seen.by_model,
        "metrics: unavailable": outcomes.get("unavailable", -1) == seen.ends["unavailable"],
        "metrics: no errors, no deadlines": outcomes.get("error", -1) == outcomes.get("deadline", -1) == 0,
        "metrics: tokens": served.get("diffgemma_output_tokens_total", -1) >= seen.tokens,
    }


def scrape(url: str) -> dict[str, float]:
    """Prometheus values by name and, after a space, the value of its label other than model and version, if any."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: defaultdict[str, float] = defaultdict(float)
    for name, labels, value in _LINE.findall(text):
        kind = "".join(text for label, text in _LABEL.findall(labels) if label not in ("model", "version"))
        found[f"{name} {kind}".strip()] += float(value)
    return dict(found)


def settle(url: str) -> bool:
    """Wait until no request waits or holds a slot or a block of the cache; False when that takes too long."""
    gauges = [f"nv_trt_llm_request_metrics {kind}" for kind in ("waiting", "context", "scheduled", "active")]
    gauges.append("nv_trt_llm_kv_cache_block_metrics used")
    idle = wait_until(lambda: not any(scrape(url)[gauge] for gauge in gauges), SETTLE_S)
    # Counters are brought up to date with the gauges, or just after.
    time.sleep(0.5)
    return idle


def wait_until(condition: Callable[[], bool], budget_s: float) -> bool:
    """Whether it holds within so many seconds."""
    deadline = time.monotonic() + budget_s
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return held
