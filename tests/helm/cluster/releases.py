"""Helm and kubectl against the test cluster, and the chart as that cluster's version can take it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helm.cluster.api import Object

CHART = Path(__file__).parents[3] / "helm" / "diffgemma"

# API versions that came with a Kubernetes release, and what went before: the fields that the chart uses are the same
_BEFORE = {
    (1, 21): {"policy/v1": "policy/v1beta1"},
    (1, 23): {"autoscaling/v2": "autoscaling/v2beta2"},
}


def chart_for(version: tuple[int, int], directory: Path) -> Path:
    """The chart on a cluster it is made for; else a copy with older API versions and no least version of Kubernetes.

    Args:
        version: of the API server.
        directory: where to write the copy.
    """
    replaced = {new: old for since, pairs in _BEFORE.items() if version < since for new, old in pairs.items()}
    if not replaced:
        return CHART
    copy = directory / CHART.name
    shutil.copytree(CHART, copy)
    manifest = copy / "Chart.yaml"
    manifest.write_text(re.sub(r"(?m)^kubeVersion:.*\n", "", manifest.read_text()))
    for template in (copy / "templates").rglob("*.yaml"):
        text = template.read_text()
        for new, old in replaced.items():
            text = re.sub(rf"(?m)^apiVersion: {new}$", f"apiVersion: {old}", text)
        template.write_text(text)
    return copy


@dataclass(frozen=True)
class Done:
    """Exit status of a command and everything it printed."""

    status: int
    text: str


@dataclass(frozen=True)
class Release:
    """One release in a namespace of its own.

    Args:
        helm, kubectl: binaries.
        kubeconfig: of the cluster.
        chart: folder.
        namespace: exists already.
        directory: for Helm's files.
        name: of the release.
    """

    helm: Path
    kubectl: Path
    kubeconfig: Path
    chart: Path
    namespace: str
    directory: Path
    name: str = "demo"

    @property
    def fullname(self) -> str:
        """What the chart's objects are called."""
        return f"{self.name}-diffgemma"

    @property
    def wait(self) -> list[str]:
        """Options with which helm waits, for everything that it can wait for."""
        return ["--wait", "--wait-for-jobs", "--timeout", "90s"]

    @property
    def helm_waits_for_one_pod(self) -> bool:
        """Helm 3 does not: of one replica ``maxUnavailable`` 1 leaves none to wait for."""
        return not self.run("version", "--short").text.startswith("v3")

    def install(self, *options: str) -> Done:
        """``helm install``."""
        return self.run("install", self.name, str(self.chart), *options)

    def upgrade(self, *options: str) -> Done:
        """``helm upgrade``, with the values of the release where nothing else is said."""
        return self.run("upgrade", self.name, str(self.chart), "--reuse-values", *options)

    def installed(self, *options: str) -> None:
        """Install, wait as the documentation says, and be sure that it went well."""
        self._settled(self.install(*options, *self.wait))

    def upgraded(self, *options: str) -> None:
        """Upgrade, wait as the documentation says, and be sure that it went well."""
        self._settled(self.upgrade(*options, *self.wait))

    def rolled_back(self, revision: int) -> None:
        """Roll back, wait as the documentation says, and be sure that it went well."""
        self._settled(self.run("rollback", self.name, str(revision), *self.wait))

    def rollout(self, seconds: int) -> Done:
        """``kubectl rollout status`` of serving."""
        return self.kube("rollout", "status", f"deployment/{self.fullname}", f"--timeout={seconds}s")

    def _settled(self, done: Done) -> None:
        assert done.status == 0, done.text + self.events()
        done = self.rollout(60)
        assert done.status == 0, done.text + self.events()

    def run(self, *arguments: str, seconds: float = 240.0) -> Done:
        """A helm command to its end."""
        process = self.begin(*arguments)
        text, _ = process.communicate(timeout=seconds)
        return Done(process.returncode, text)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a helm command."""
        return self._begin(self.helm, arguments)

    def kube(self, *arguments: str, seconds: float = 120.0) -> Done:
        """A kubectl command to its end."""
        process = self.begin_kube(*arguments)
        text, _ = process.communicate(timeout=seconds)
        return Done(process.returncode, text)

    def begin_kube(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a kubectl command."""
        return self._begin(self.kubectl, arguments)

    def _begin(self, binary: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
        command = [str(binary), *arguments, "--namespace", self.namespace, "--kubeconfig", str(self.kubeconfig)]
        homes = {f"HELM_{kind}_HOME": str(self.directory / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.directory), **homes}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    def events(self) -> str:
        """What ``kubectl get events`` shows a person, the warnings only."""
        return self.kube(
            "get", "events", "--field-selector=type=Warning", "--output=custom-columns=R:.reason,M:.message"
        ).text

    def get(self, kind: str, name: str | None = None, component: str | None = None) -> list[Object]:
        """Objects of one kind, by name or by the chart's component label."""
        by = [name] if name else [f"--selector=app.kubernetes.io/component={component}"] if component else []
        done = self.kube("get", kind, *by, "--output=json", "--ignore-not-found")
        assert done.status == 0, done.text
        if not done.text.strip():
            return []
        found = json.loads(done.text)
        items: list[Object] = found["items"] if found["kind"] == "List" else [found]
        return items
