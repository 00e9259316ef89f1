"""Every manifest fits the schemas of Kubernetes, every custom resource its own model.

Runs in the environment that `make helm-test` makes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest

from tests.helm.chart.cases import CASES, rendered
from tests.helm.chart.rendering import Object

pytestmark = pytest.mark.helm

VERSIONS = ("1.27", "1.30", "1.33", "1.37")
CUSTOM = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ScaledObject", "GRPCRoute"}
GATEWAY = Path(__file__).parent / "tools" / "gateway.mjs"


def manifests(since: Callable[[str], bool] = lambda _: True) -> Iterator[tuple[str, Object]]:
    """``(cases it is in, manifest)``, each manifest once."""
    found: dict[str, tuple[list[str], Object]] = {}
    for name, case in CASES.items():
        for o in rendered(name) if since(case.since) else ():
            found.setdefault(json.dumps(o, sort_keys=True), ([], o))[0].append(name)
    for names, o in found.values():
        yield f"{o['kind']}/{o['metadata']['name']} of {', '.join(names)}", o


def custom(kind: str) -> list[tuple[str, Object]]:
    """The manifests of one custom kind."""
    return [(where, o) for where, o in manifests() if o["kind"] == kind]


@pytest.fixture(scope="module")
def fits() -> Callable[[Object, str], str]:
    """What is wrong with a manifest under a Kubernetes version; empty when nothing is."""
    from kubernetes_validate import utils

    # it would read 2 MB for each manifest
    utils.schema_contents = cache(utils.schema_contents)

    def judge(manifest: Object, version: str) -> str:
        try:
            utils.validate(manifest, version, strict=True)
        except utils.SchemaNotFoundError as error:  # its command line calls this a warning
            return str(error.message)
        except utils.ValidationError as error:
            return f"{'.'.join(map(str, error.path))}: {error.message}"
        return ""

    return judge


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_fit_kubernetes(fits: Callable[[Object, str], str], version: str) -> None:
    old = tuple(map(int, version.split(".")))
    judged = [
        o for o in manifests(lambda since: tuple(map(int, since.split("."))) <= old) if o[1]["kind"] not in CUSTOM
    ]
    wrong = {where: found for where, o in judged if (found := fits(o, version))}
    assert not wrong
    assert len(judged) > 100


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unknown_version_or_field_fails(fits: Callable[[Object, str], str], version: str) -> None:
    budget = next(o for o in rendered("defaults") if o["kind"] == "PodDisruptionBudget")
    assert "Couldn't find schema" in fits(budget | {"apiVersion": "policy/v1beta1"}, version)
    wrong = deepcopy(budget)
    wrong["spec"]["maxUnavailabel"] = 1
    assert "maxUnavailabel" in fits(wrong, version)


def test_every_custom_resource_is_judged() -> None:
    kinds = {o["kind"] for _, o in manifests() if "." in o["apiVersion"].partition("/")[0]}
    builtin = {"NetworkPolicy", "Ingress"}
    assert kinds - builtin == CUSTOM


def strict(model: type, manifest: Object) -> str:
    """What a pydantic model says of a manifest; what it would leave out is an unknown field."""
    from pydantic import ValidationError

    try:
        read = model.model_validate(manifest)  # type: ignore[attr-defined]
    except ValidationError as error:
        return str(error)
    kept = read.model_dump(by_alias=True, exclude_unset=True, mode="json")
    return f"unknown: {sorted(lost)}" if (lost := paths(manifest) - paths(kept)) else ""


def paths(value: object, path: str = "") -> set[str]:
    """Every key of nested mappings, dotted."""
    if isinstance(value, dict):
        return {p for key, inner in value.items() for p in {f"{path}.{key}"} | paths(inner, f"{path}.{key}")}
    if isinstance(value, list):
        return {p for index, inner in enumerate(value) for p in paths(inner, f"{path}[{index}]")}
    return set()


@pytest.mark.parametrize("kind", sorted(CUSTOM - {"GRPCRoute"}))
def test_custom_resources_fit_their_models(kind: str) -> None:
    from cloudcoil.models.keda import v1alpha1 as keda
    from cloudcoil.models.prometheus_operator import v1 as prometheus

    model = getattr(keda if kind == "ScaledObject" else prometheus, kind)
    found = custom(kind)
    assert found
    assert not {where: said for where, o in found if (said := strict(model, o))}
    # and the model is one that refuses
    wrong = deepcopy(found[0][1])
    wrong["spec"]["unheardOf"] = 1
    assert strict(model, wrong) == "unknown: ['.spec.unheardOf']"
    del wrong["spec"]
    assert "Field required" in strict(model, wrong) or "Input should be" in strict(model, wrong)


def test_routes_fit_the_gateway_api() -> None:
    """Its models refuse wrong types and missing fields, not unknown ones."""
    routes = [o for _, o in custom("GRPCRoute")]
    assert routes
    assert gateway(routes) == ""
    wrong = deepcopy(routes[0])
    wrong["spec"]["rules"][0]["backendRefs"][0]["port"] = "grpc"
    assert "backendRefs/0/port must be integer" in gateway([wrong])


def gateway(routes: list[Object]) -> str:
    """What the Gateway API's models say of routes."""
    home = Path(sys.prefix) / "npm"  # node finds packages beside the script that it runs
    script = home / GATEWAY.name
    script.write_text(GATEWAY.read_text())
    command = [str(Path(sys.prefix) / "bin" / "node"), str(script)]
    done = subprocess.run(command, input=json.dumps(routes), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
