"""The Grafana dashboard, made from a short list of panels; ``python -m triton_repo.dashboard --write`` writes it."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD_FILE = Path(__file__).parent / "grafana" / "diffgemma.json"
# Grafana picks it to suit the panel's width and the scrape interval.
_RATE = "[$__rate_interval]"
_WIDTH, _HEIGHT = 8, 8  # of a grid of 24


@dataclass(frozen=True)
class Panel:
    """One time series panel.

    Args:
        title: what it shows.
        about: how to read it.
        unit: Grafana's name of the unit.
        series: legend -> PromQL; ``{{label}}`` in a legend is the label's value.
        stacked: series lie on top of each other.
    """

    title: str
    about: str
    unit: str
    series: dict[str, str]
    stacked: bool = False


def _rate(name: str, by: str = "") -> str:
    """Per second, over all replicas."""
    return f"sum{f' by ({by})' if by else ''} (rate({name}{{{_SELECTED}}}{_RATE}))"


def _quantiles(name: str) -> dict[str, str]:
    return {
        f"p{round(q * 100)}": f"histogram_quantile({q}, {_rate(f'{name}_bucket', 'le')})" for q in (0.5, 0.95, 0.99)
    }


def _gauge(name: str, label: str, value: str) -> str:
    return f'sum ({name}{{{_SELECTED},{label}="{value}"}})'


_SELECTED = 'job=~"$job",instance=~"$instance"'
_REQUESTS, _CACHE = "nv_trt_llm_request_metrics", "nv_trt_llm_kv_cache_block_metrics"

PANELS: tuple[Panel, ...] = (
    Panel(
        "Requests by outcome",
        "Requests a second, by how they ended. error is the service's fault; refused the client's.",
        "reqps",
        {"{{outcome}}": _rate("diffgemma_requests_total", "outcome")},
        stacked=True,
    ),
    Panel(
        "Refusals and cancellations",
        "Share of requests that were not answered in full, by reason.",
        "percentunit",
        {
            "{{outcome}}": f"sum by (outcome) (rate(diffgemma_requests_total{{{_SELECTED},"
            f'outcome=~"refused|unavailable|cancelled|deadline|error"}}{_RATE}))'
            f" / ignoring (outcome) group_left {_rate('diffgemma_requests_total')}"
        },
    ),
    Panel(
        "Requests now",
        "waiting has no slot yet; context is encoding its prompt; scheduled was worked on in the last iteration.",
        "short",
        {
            state: _gauge(_REQUESTS, "request_type", state)
            for state in ("waiting", "context", "scheduled", "active", "max")
        },
    ),
    Panel(
        "Queue to compute",
        "Seconds waited for each second computed. Above about 0.5 for minutes: scale out.",
        "short",
        {"queue / compute": f"{_rate('diffgemma_queue_seconds_total')} / {_rate('diffgemma_compute_seconds_total')}"},
    ),
    Panel(
        "Queue wait",
        "From arrival to a slot, or to the end of a request that never got one.",
        "s",
        _quantiles("diffgemma_queue_seconds"),
    ),
    Panel(
        "Time to first block",
        "From arrival to the first committed block.",
        "s",
        _quantiles("diffgemma_time_to_first_block_seconds"),
    ),
    Panel(
        "Block time", "From one committed block of a request to its next.", "s", _quantiles("diffgemma_block_seconds")
    ),
    Panel("Request time", "From arrival to the end.", "s", _quantiles("diffgemma_request_seconds")),
    Panel(
        "Tokens",
        "Tokens a second: returned, read from prompts, and of those found in the cache.",
        "short",
        {
            "output": _rate("diffgemma_output_tokens_total"),
            "input": _rate("diffgemma_input_tokens_total"),
            "reused": _rate("diffgemma_reused_tokens_total"),
        },
    ),
    Panel(
        "Denoising steps per canvas",
        "Mean and quantiles. More steps for the same traffic: harder prompts, or a model that is less sure.",
        "short",
        {
            "mean": f"{_rate('diffgemma_denoising_steps_sum')} / {_rate('diffgemma_denoising_steps_count')}",
            **_quantiles("diffgemma_denoising_steps"),
        },
    ),
    Panel(
        "Canvases at the step cap",
        "Share of canvases that max_denoising_steps ended, not convergence: text that may not be finished thinking.",
        "percentunit",
        {
            "share": f'sum (rate(diffgemma_canvases_total{{{_SELECTED},ended="step_cap"}}{_RATE}))'
            f" / {_rate('diffgemma_canvases_total')}"
        },
    ),
    Panel(
        "Denoising",
        "Steps a second, each canvas counted, and positions accepted a step. No steps while requests run: stuck.",
        "short",
        {
            "steps/s": _rate("diffgemma_denoising_steps_total"),
            "accepted a step": " / ".join(
                _rate(f"diffgemma_{name}_total") for name in ("accepted_tokens", "denoising_steps")
            ),
        },
    ),
    Panel(
        "Cache in use",
        "Share of the key/value cache that running requests hold. At 1 requests wait for memory, not for slots.",
        "percentunit",
        {
            "used": f"{_gauge(_CACHE, 'kv_cache_block_type', 'used')} / {_gauge(_CACHE, 'kv_cache_block_type', 'max')}",
        },
    ),
    Panel(
        "Cache, tokens",
        "Blocks times tokens a block. What is kept for later prompts counts as free: it gives way.",
        "short",
        {
            kind: f'sum ({_CACHE}{{{_SELECTED},kv_cache_block_type="{kind}"}} * ignoring (kv_cache_block_type)'
            f' {_CACHE}{{{_SELECTED},kv_cache_block_type="tokens_per"}})'
            for kind in ("used", "free")
        },
        stacked=True,
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it, schema of Grafana 10.4 and newer."""
    return {
        "__inputs": [],
        "annotations": {"list": []},
        "description": "Requests, latency, tokens and denoising of DiffusionGemma on Triton",
        "editable": True,
        "graphTooltip": 1,
        "panels": [_panel(number, panel) for number, panel in enumerate(PANELS)],
        "refresh": "30s",
        "schemaVersion": 39,
        "tags": ["diffgemma", "triton"],
        "templating": {"list": _variables()},
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "title": "DiffusionGemma",
        "uid": "diffgemma",
        "version": 1,
    }


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return [source, _variable("job", ""), _variable("instance", 'job=~"$job"')]


def _variable(label: str, within: str) -> dict[str, Any]:
    query = f"label_values(diffgemma_requests_total{{{within}}}, {label})"
    return {
        "name": label,
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": label},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    per_row = 24 // _WIDTH
    custom = {"fillOpacity": 20 if panel.stacked else 0, "stacking": {"mode": "normal" if panel.stacked else "none"}}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": {
            "x": number % per_row * _WIDTH,
            "y": number // per_row * _HEIGHT,
            "w": _WIDTH,
            "h": _HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for i, (legend, expression) in enumerate(panel.series.items())
        ],
    }


def render() -> str:
    """The text of the file."""
    return json.dumps(dashboard(), indent=2) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Check (or write) the committed dashboard; exit status 1 when it differs."""
    parser = argparse.ArgumentParser(prog="python -m triton_repo.dashboard", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="fail when the committed file differs from the rendering")
    action.add_argument("--write", action="store_true", help="write the rendering")
    if parser.parse_args(arguments).write:
        DASHBOARD_FILE.write_text(render())
    if not DASHBOARD_FILE.is_file() or DASHBOARD_FILE.read_text() != render():
        print(
            f"{DASHBOARD_FILE.name} is not as rendered; fix: python -m triton_repo.dashboard --write", file=sys.stderr
        )
        return 1
    print(f"{DASHBOARD_FILE.name}: {len(PANELS)} panels, as rendered")
    return 0


if __name__ == "__main__":
    sys.exit(main())
