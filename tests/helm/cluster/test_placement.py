"""Which node the pods of each profile land on."""

from __future__ import annotations

import pytest

from tests.helm.cluster.releases import CHART, Release
from tests.helm.cluster.test_lifecycle import CLAIM, ready

pytestmark = pytest.mark.helm_e2e


@pytest.mark.parametrize(
    ("profile", "node"), [("h100", "h100-0"), ("dgx-spark", "spark-0"), ("cpu", None)], ids=["h100", "dgx-spark", "cpu"]
)
def test_profile(release: Release, profile: str, node: str | None) -> None:
    release.installed("--values", str(CHART / f"values-{profile}.yaml"), "--set", CLAIM)
    pods = ready(release) + release.get("pods", component="engine-build")
    assert {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods} == {"serving", "engine-build"}
    assert {pod["spec"]["nodeName"] for pod in pods} == {node or "plain-0"}
    gpus = [pod["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for pod in ready(release)]
    assert set(gpus) == ({"1"} if node else {None})
    assert release.run("test", release.name, "--timeout", "60s").status == 0
