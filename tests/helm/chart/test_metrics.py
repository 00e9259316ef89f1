"""Alerts, autoscaling and dashboard ask only for what the server exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import yaml

from tests.helm.chart.cases import rendered
from tests.helm.chart.rendering import ROOT, Object, one
from triton_repo.metrics import BY_NAME

_NAME = re.compile(r"\b(?:diffgemma|nv)_[a-z0-9_]+")
_SELECTOR = re.compile(r"\b((?:diffgemma|nv)_[a-z0-9_]+)\{([^}]*)\}")
_LABEL = re.compile(r'([a-z_]+)\s*(=~|!~|=|!=)\s*"([^"]*)"')
# labels that Prometheus adds to every series of a pod, and a histogram's own
_ADDED = {"namespace", "pod", "instance", "job", "le"}
SCALED_BY = "diffgemma_queue_compute_ratio"


def wrong(query: str) -> list[str]:
    """What a PromQL query asks for that is not exported."""
    found = [name for name in _NAME.findall(query) if family(name) is None]
    for name, selector in _SELECTOR.findall(query):
        if (base := family(name)) is None:
            continue
        *plain, told_apart = BY_NAME[base].labels or ("",)
        for label, operator, value in _LABEL.findall(selector):
            if label == told_apart and operator in ("=", "!=") and value not in BY_NAME[base].values:
                found.append(f"{name}: {label}={value}")
            elif label not in {*_ADDED, *plain, told_apart}:
                found.append(f"{name}: label {label}")
    return found


def family(name: str) -> str | None:
    """The exported metric that ``name`` is a series of."""
    if name in BY_NAME:
        return None if BY_NAME[name].kind == "histogram" else name
    base = re.sub("_(bucket|sum|count)$", "", name)
    return base if base in BY_NAME and BY_NAME[base].kind == "histogram" else None


def queries(value: object) -> Iterator[str]:
    """Every ``expr`` and ``query`` below a value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("expr", "query") and isinstance(inner, str):
                yield inner
            else:
                yield from queries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from queries(inner)


def alerts() -> list[Object]:
    return list(one(rendered("everything"), "PrometheusRule")["spec"]["groups"][0]["rules"])


def adapter_rule() -> Object:
    """The rule for prometheus-adapter in the documentation."""
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (found,) = [block for block in blocks if "seriesQuery" in block]
    (rule,) = yaml.safe_load(found)["rules"]["custom"]
    return dict(rule)


def test_alerts() -> None:
    found = alerts()
    assert len(found) > 3
    for alert in found:
        name = alert["alert"]
        assert _NAME.search(alert["expr"]), name
        assert wrong(alert["expr"]) == [], name
        assert alert["labels"]["severity"] in ("info", "warning", "critical"), name
        assert alert["annotations"]["summary"], name
        assert alert["annotations"]["description"], name


def test_keda() -> None:
    (trigger,) = one(rendered("keda"), "ScaledObject")["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    assert _NAME.findall(query) == ["diffgemma_queue_seconds_total", "diffgemma_compute_seconds_total"]
    assert wrong(query) == []
    assert trigger["metadata"]["threshold"] == "0.5"
    assert trigger["metricType"] == "Value", "shared out among pods, a ratio would mean something else"


def test_queries_are_about_the_release_s_own_pods() -> None:
    for query in queries([*alerts(), one(rendered("everything"), "ScaledObject")]):
        for name, selector in _SELECTOR.findall(query):
            assert 'namespace="llm"' in selector, name
            (_, _, pattern) = next(label for label in _LABEL.findall(selector) if label[0] == "pod")
            assert re.fullmatch(pattern, "gemma-diffgemma-7d9c5b6f4-x2k9p")
            assert not re.fullmatch(pattern, "gemma-diffgemma-h100-0a1b2c3d4e5f-a1b2c3-x2k9p")
            assert not re.fullmatch(pattern, "other-diffgemma-7d9c5b6f4-x2k9p")


def test_the_adapter_makes_what_the_autoscaler_asks_for() -> None:
    metric = one(rendered("hpa"), "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"]["metric"]["name"]
    rule = adapter_rule()
    assert metric == rule["name"]["as"] == SCALED_BY
    for template in (rule["seriesQuery"], rule["metricsQuery"].replace("<<.LabelMatchers>>", 'pod=~"a"')):
        assert _NAME.search(template)
        assert wrong(template) == []


def dashboard() -> Object:
    """What Grafana is given."""
    data = one(rendered("everything"), "ConfigMap")["data"]
    return dict(json.loads(data["diffgemma.json"]))


def test_the_dashboard() -> None:
    asked = list(queries(dashboard()))
    assert len(asked) > 5
    assert [name for query in asked for name in wrong(query)] == []


@pytest.mark.helm
def test_every_query_is_promql() -> None:
    import promql_parser

    asked = list(queries([*alerts(), one(rendered("everything"), "ScaledObject"), dashboard()]))
    adapter = adapter_rule()["metricsQuery"].replace("<<.LabelMatchers>>", 'pod="a"').replace("<<.GroupBy>>", "pod")
    assert len(asked) > 10
    for query in [*asked, adapter]:
        # what Grafana puts in, and its own function around a selector
        plain = re.sub(r"\$__rate_interval|\$__interval|\$__range", "5m", query)
        promql_parser.parse(re.sub(r"^label_values\((.*), *\w+\)$", r"\1", plain))
    with pytest.raises(ValueError, match="parenthesis"):
        promql_parser.parse("sum(rate(a[5m])")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("rate(diffgemma_request_total[5m])", ["diffgemma_request_total"]),
        ("diffgemma_queue_seconds", ["diffgemma_queue_seconds"]),
        ('diffgemma_requests_total{outcome="failed"}', ["diffgemma_requests_total: outcome=failed"]),
        ('diffgemma_requests_total{outcom="error"}', ["diffgemma_requests_total: label outcom"]),
        ("nv_inference_request_success", ["nv_inference_request_success"]),
    ],
)
def test_a_wrong_query_is_found(query: str, found: list[str]) -> None:
    assert wrong(query) == found
