"""Single values out of the server's Prometheus metrics."""

from __future__ import annotations

import re
import urllib.request

# its own server is never asked through a proxy, whatever the environment says
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_RUNNING = re.compile(r'^nv_trt_llm_request_metrics\{.*request_type="(?:waiting|active)".*\} (\S+)$', re.MULTILINE)
_STEPS = re.compile(r"^diffgemma_denoising_steps_total(?:\{.*\})? (\S+)$", re.MULTILINE)


def running_requests(url: str) -> int | None:
    """Requests that wait or run; None from a server that does not answer, because it is gone or too busy."""
    return _total(url, _RUNNING)


def denoising_steps(url: str) -> int | None:
    """Denoising steps since the engine was loaded; None from a server that does not answer."""
    return _total(url, _STEPS)


def _total(url: str, pattern: re.Pattern[str]) -> int | None:
    try:
        with DIRECT.open(url, timeout=2) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    return int(sum(float(value) for value in pattern.findall(text)))
