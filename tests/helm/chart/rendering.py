"""Render the chart with Helm 4 or Helm 3."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.helm.cluster.tools import tools

Object = dict[str, Any]
ROOT = Path(__file__).parents[3]
CHART = ROOT / "helm" / "diffgemma"
PROFILES = ("h100", "h100-mig", "dgx-spark", "cpu", "openshift")
HELMS = ("helm4", "helm3")
# what has no default: the user's own names
INPUTS: Object = {"checkpoint": {"claim": {"name": "checkpoint"}}}
PRODUCT: Object = {"gpu": {"products": ["NVIDIA-H100-80GB-HBM3"]}}
RELEASE, NAMESPACE = "gemma", "llm"
FULLNAME = "gemma-diffgemma"


@dataclass(frozen=True)
class Case:
    """Values to render with.

    Args:
        values: over everything else.
        profiles: values files by what follows ``values-`` in their names.
        since: the first Kubernetes version that takes the result.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    profiles: Sequence[str] = ()
    since: str = "1.27"

    def all_values(self) -> Object:
        """With the user's own names, and a product where no profile has one."""
        own = INPUTS if {*self.profiles} - {"openshift"} else merged(INPUTS, PRODUCT)
        return merged(own, self.values)


def merged(*layers: Mapping[str, Any]) -> Object:
    """Nested mappings put over each other, the last on top."""
    result: Object = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            both = isinstance(old, dict) and isinstance(value, Mapping)
            result[key] = merged(old, value) if both else value
    return result


def helm(
    version: str, *arguments: str, values: Mapping[str, Any] | None = None, profiles: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """A helm command with profiles and values; values go in on standard input."""
    files = [f"--values={CHART}/values-{profile}.yaml" for profile in profiles]
    given = ["--values=-"] if values is not None else []
    command = [str(tools(version)[0]), *arguments, *files, *given]
    clean = {"PATH": os.environ["PATH"], "HOME": str(ROOT / "build" / "helm-home"), "KUBECONFIG": os.devnull}
    return subprocess.run(
        command, input=json.dumps(values or {}), capture_output=True, text=True, check=False, env=clean
    )


def render(case: Case, version: str = "helm4", kubernetes: str | None = None, release: str = RELEASE) -> list[Object]:
    """The manifests of a case.

    Raises:
        AssertionError: with Helm's words, when it refuses.
    """
    done = template(case, version, kubernetes, release)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if document]


def template(
    case: Case, version: str = "helm4", kubernetes: str | None = None, release: str = RELEASE
) -> subprocess.CompletedProcess[str]:
    """``helm template`` of a case."""
    return helm(
        version,
        "template",
        release,
        str(CHART),
        f"--namespace={NAMESPACE}",
        f"--kube-version={kubernetes or case.since}",
        values=case.all_values(),
        profiles=case.profiles,
    )


def of_kind(objects: Sequence[Object], kind: str) -> list[Object]:
    """Those of one kind."""
    return [o for o in objects if o["kind"] == kind]


def one(objects: Sequence[Object], kind: str) -> Object:
    """The only one of its kind."""
    (found,) = of_kind(objects, kind)
    return found


def named(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The one of this kind and name."""
    (found,) = [o for o in of_kind(objects, kind) if o["metadata"]["name"] == name]
    return found


def pods(objects: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """``(kind/name, pod template)`` of everything that makes pods."""
    for o in objects:
        if o["kind"] == "Pod":
            yield f"Pod/{o['metadata']['name']}", o
        elif "template" in o.get("spec", {}):
            yield f"{o['kind']}/{o['metadata']['name']}", o["spec"]["template"]


def containers(pod: Object) -> list[Object]:
    """InitContainers and containers of a pod template."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def serving(objects: Sequence[Object]) -> Object:
    """The container that serves."""
    (found,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def variables(container: Object) -> dict[str, str]:
    """Environment with plain values."""
    return {v["name"]: v["value"] for v in container.get("env", []) if "value" in v}
