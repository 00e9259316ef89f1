"""The Grafana dashboard asks for what the server exports, and for all of it."""

from __future__ import annotations

import json
import re

import pytest

from triton_repo import dashboard
from triton_repo.python_backend.metrics import METRICS, Metric

# Families that no panel shows -> why.
UNUSED: dict[str, str] = {}
SERIES: dict[str, Metric] = {
    f"{metric.name}{suffix}": metric
    for metric in METRICS
    for suffix in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
}
SELECTOR = re.compile(r"([a-z_]+)\{([^}]*)\}")
MATCHER = re.compile(r'([a-z_]+)(=~|=)"([^"]*)"')


def expressions() -> list[str]:
    found = json.loads(dashboard.DASHBOARD_FILE.read_text())
    return [target["expr"] for panel in found["panels"] for target in panel["targets"]]


def selectors(expression: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    return [(name, MATCHER.findall(matchers)) for name, matchers in SELECTOR.findall(expression)]


def test_the_committed_file_is_the_rendered_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert dashboard.main(["--check"]) == 0
    assert capsys.readouterr().out == f"diffgemma.json: {len(dashboard.PANELS)} panels, as rendered\n"


def test_a_file_that_is_not_the_rendered_one_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dashboard, "PANELS", dashboard.PANELS[1:])
    assert dashboard.main(["--check"]) == 1
    expected = "diffgemma.json is not as rendered; fix: python -m triton_repo.dashboard --write\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_uses_series_and_labels_that_are_exported(expression: str) -> None:
    found = selectors(expression)
    assert found
    # what looks like one of our names is one: no selector was missed
    assert re.findall(r"\b(?:diffgemma|nv_trt_llm)_[a-z_]+", expression) == [name for name, _ in found]
    for name, matchers in found:
        metric = SERIES[name]
        assert [m[:2] for m in matchers[:2]] == [("job", "=~"), ("instance", "=~")]
        for label, _, values in matchers[2:]:
            assert label == metric.labels[-1]
            assert set(values.split("|")) <= set(metric.values)
        if metric.kind != "gauge":
            assert f"rate({name}{{" in expression
        else:
            assert "rate(" not in expression


def test_every_family_is_shown_or_has_a_reason() -> None:
    used = {SERIES[name].name for expression in expressions() for name, _ in selectors(expression)}
    assert used | set(UNUSED) == {metric.name for metric in METRICS}
    assert not used & set(UNUSED)


def test_panels_have_a_place_of_their_own_and_the_variables_source() -> None:
    found = json.loads(dashboard.DASHBOARD_FILE.read_text())
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in found["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    variables = {variable["name"] for variable in found["templating"]["list"]}
    assert variables == {"datasource", "job", "instance"}
    for panel in found["panels"]:
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert sources == [{"type": "prometheus", "uid": "${datasource}"}] * len(sources)
