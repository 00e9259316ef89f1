"""Single values out of the server's Prometheus metrics."""

from __future__ import annotations

import re
import urllib.request

_RUNNING = re.compile(r'^nv_trt_llm_request_metrics\{.*request_type="(?:waiting|active)".*\} (\S+)$', re.MULTILINE)
_STEPS = re.compile(r"^diffgemma_denoising_steps_total(?:\{.*\})? (\S+)$", re.MULTILINE)


def running_requests(url: str) -> int:
    """Requests that wait or run; 0 from a server that does not answer any more."""
    return int(_total(url, _RUNNING))


def denoising_steps(url: str) -> int:
    """Denoising steps since the engine was loaded; 0 from a server that does not answer any more."""
    return int(_total(url, _STEPS))


def _total(url: str, pattern: re.Pattern[str]) -> float:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            text = answer.read().decode()
    except OSError:
        return 0.0
    return sum(float(value) for value in pattern.findall(text))
