"""The chart as Helm renders it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.helm.cluster.tools import tools

Object = dict[str, Any]

CHART = Path(__file__).parents[2] / "helm" / "diffgemma"
RELEASE = "demo"
PROFILES = ("h100", "h100-mig", "dgx-spark", "cpu", "h100+openshift")


def rendered(profile: str, *options: str) -> list[Object]:
    """Every object of a release called :data:`RELEASE`, helm tests too.

    Args:
        profile: one of :data:`PROFILES`: names of values files, joined by ``+``.
        options: further options of ``helm template``.
    """
    helm, _ = tools("helm4")
    values = [f"--values={CHART / f'values-{part}.yaml'}" for part in profile.split("+")]
    command = [str(helm), "template", RELEASE, str(CHART), "--kube-version", "1.33.0", *values, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def pod_specs(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Kind and name of each object that makes pods, and the pod's ``spec``."""
    for found in objects:
        name = f"{found['kind']}/{found['metadata']['name']}"
        if found["kind"] == "Pod":
            yield name, found["spec"]
        elif found["kind"] in ("Deployment", "Job"):
            yield name, found["spec"]["template"]["spec"]


def containers(pod: Object) -> list[Object]:
    """initContainers and containers."""
    return [*pod.get("initContainers", []), *pod["containers"]]
