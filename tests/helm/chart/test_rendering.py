"""The chart renders, the same with Helm 4 and Helm 3, for every profile and combination of switches."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml

from tests.helm.chart.cases import CASES, PROFILE_CASES, SWITCHES, rendered
from tests.helm.chart.rendering import (
    CHART,
    FULLNAME,
    HELMS,
    NAMESPACE,
    ROOT,
    Case,
    Object,
    containers,
    helm,
    merged,
    named,
    of_kind,
    one,
    pods,
    render,
    serving,
    variables,
)


@pytest.fixture(params=CASES)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """The manifests of each case."""
    return rendered(request.param)


def test_there_are_enough_cases() -> None:
    assert len(SWITCHES) >= 20
    files = {path.name for path in CHART.glob("values-*.yaml")}
    assert files == {f"{name}.yaml" for name in PROFILE_CASES if "+" not in name}


@pytest.mark.helm
@pytest.mark.parametrize("name", CASES)
def test_helm_3_renders_what_helm_4_renders(name: str) -> None:
    assert render(CASES[name], "helm3") == rendered(name)


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize("name", [*PROFILE_CASES, "everything"])
def test_lint_is_strict_about_every_values_file(version: str, name: str) -> None:
    case = CASES[name]
    done = helm(version, "lint", "--strict", str(CHART), values=case.all_values(), profiles=case.profiles)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout


@pytest.mark.parametrize("version", HELMS)
def test_the_chart_packs(version: str, tmp_path: Path) -> None:
    done = helm(version, "package", str(CHART), "--destination", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("diffgemma-*.tgz"))


def test_every_object_is_in_the_namespace_and_labelled(objects: list[Object]) -> None:
    for o in objects:
        assert o["metadata"]["namespace"] == NAMESPACE, o["metadata"]["name"]
        labels = o["metadata"]["labels"]
        assert {"app.kubernetes.io/name", "app.kubernetes.io/instance", "helm.sh/chart"} <= labels.keys()


def test_names_fit_however_long_the_release_is() -> None:
    long = render(CASES["everything"], release="r" * 53)
    for o in long:
        assert len(o["metadata"]["name"]) <= 63, o["metadata"]["name"]
        for value in o["metadata"]["labels"].values():
            assert len(value) <= 63, value


def test_ports_have_a_protocol_and_quantities_are_strings(objects: list[Object]) -> None:
    for o in objects:
        for _, holder in _nested(o):
            for port in holder.get("ports", []) if isinstance(holder.get("ports"), list) else []:
                assert port["protocol"] in ("TCP", "UDP"), o["metadata"]["name"]
            for kind in ("requests", "limits"):
                assert all(isinstance(v, str) for v in (holder.get(kind) or {}).values()), o["metadata"]["name"]


def test_services_and_policies_reach_the_serving_pods_and_no_other(objects: list[Object]) -> None:
    templates = {name: pod["metadata"]["labels"] for name, pod in pods(objects)}
    selectors = [o["spec"]["selector"] for o in of_kind(objects, "Service")]
    selectors += [o["spec"]["selector"]["matchLabels"] for o in of_kind(objects, "PodDisruptionBudget")]
    selectors += [one(objects, "Deployment")["spec"]["selector"]["matchLabels"]]
    selectors += [o["spec"]["selector"]["matchLabels"] for o in of_kind(objects, "PodMonitor")]
    for selector in selectors:
        chosen = [name for name, labels in templates.items() if selector.items() <= labels.items()]
        assert chosen == [f"Deployment/{one(objects, 'Deployment')['metadata']['name']}"]
    for monitor in of_kind(objects, "ServiceMonitor"):
        chosen = [
            s["metadata"]["name"]
            for s in of_kind(objects, "Service")
            if monitor["spec"]["selector"]["matchLabels"].items() <= s["metadata"]["labels"].items()
            and any(p["name"] == monitor["spec"]["endpoints"][0]["port"] for p in s["spec"]["ports"])
        ]
        assert len(chosen) == 1, "each pod is scraped once"


def test_every_service_port_is_one_that_the_container_has(objects: list[Object]) -> None:
    ports = {port["name"]: port["containerPort"] for port in serving(objects)["ports"]}
    for service in of_kind(objects, "Service"):
        for port in service["spec"]["ports"]:
            assert port["port"] == ports[port["targetPort"]]
    offered = {port["name"] for o in of_kind(objects, "Service") for port in o["spec"]["ports"]}
    for o in of_kind(objects, "Ingress"):
        assert o["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"]["name"] in offered
    for policy in of_kind(objects, "NetworkPolicy"):
        if policy["metadata"]["name"].endswith(("-test", "-engine-build")):
            continue
        open_ports = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert open_ports == set(ports), "what is served can be reached, and nothing else"


def test_volumes_are_there_and_used(objects: list[Object]) -> None:
    claims = {o["metadata"]["name"] for o in of_kind(objects, "PersistentVolumeClaim")}
    for name, pod in pods(objects):
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
        assert mounted == volumes.keys(), name
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or claim in claims | {"checkpoint", "models", "engines"}, claim


def test_everything_that_is_written_lies_on_a_volume(objects: list[Object]) -> None:
    for name, pod in pods(objects):
        empty = {volume["name"] for volume in pod["spec"]["volumes"] if "emptyDir" in volume}
        for container in containers(pod):
            writable = {m["mountPath"] for m in container["volumeMounts"] if m["name"] in empty}
            assert {"/tmp", "/cache", "/dev/shm"} <= writable, name
            given = variables(container)
            for variable in (
                "HOME",
                "TMPDIR",
                "XDG_CACHE_HOME",
                "TRITON_CACHE_DIR",
                "CUDA_CACHE_PATH",
                "TORCHINDUCTOR_CACHE_DIR",
            ):
                assert any(given[variable] == path or given[variable].startswith(f"{path}/") for path in writable), (
                    variable
                )
        limits = [v["emptyDir"]["sizeLimit"] for v in pod["spec"]["volumes"] if "emptyDir" in v]
        assert len(limits) == len(empty), "none may fill the node"


def test_engines_and_checkpoints_are_read_only_where_they_are_read(objects: list[Object]) -> None:
    for name, pod in pods(objects):
        for container in containers(pod):
            for mount in container["volumeMounts"]:
                writes = container["name"] in ("build", "checkpoint") and mount["name"] == "engines"
                if mount["name"] in ("engines", "checkpoint", "tls") and not writes:
                    assert mount["readOnly"] is True, f"{name}: {mount}"


def test_replicas_are_left_to_the_autoscaler() -> None:
    for name in ("hpa", "keda"):
        objects = rendered(name)
        assert "replicas" not in one(objects, "Deployment")["spec"]
        kinds = {o["kind"] for o in objects}
        assert len(kinds & {"HorizontalPodAutoscaler", "ScaledObject"}) == 1
    assert one(rendered("hpa"), "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == FULLNAME
    assert one(rendered("keda"), "ScaledObject")["spec"]["scaleTargetRef"]["name"] == FULLNAME
    assert one(rendered("defaults"), "Deployment")["spec"]["replicas"] == 1
    assert one(rendered("scaled-to-zero"), "Deployment")["spec"]["replicas"] == 0


def test_a_rollout_needs_no_gpu_that_is_not_there(objects: list[Object]) -> None:
    strategy = one(objects, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy["maxSurge"] == 0 or strategy["maxSurge"] == "25%"
    assert strategy != {"maxSurge": 0, "maxUnavailable": 0}


def test_the_claim_outlives_the_release_unless_told_otherwise() -> None:
    annotations = one(rendered("defaults"), "PersistentVolumeClaim")["metadata"]["annotations"]
    assert annotations == {"helm.sh/resource-policy": "keep"}
    assert "annotations" not in one(rendered("throw-away-claim"), "PersistentVolumeClaim")["metadata"]
    for name in ("existing-claim", "prebuilt", "engine-image"):
        assert not of_kind(rendered(name), "PersistentVolumeClaim"), name


def test_with_tls_nothing_is_served_in_the_clear_but_metrics_and_health() -> None:
    objects = rendered("mutual-tls")
    container = serving(objects)
    assert {port["name"] for port in container["ports"]} == {"grpc", "openai", "metrics", "health"}
    arguments = " ".join(container["args"])
    assert "--tls-cert /tls/tls.crt --tls-key /tls/tls.key" in arguments
    assert "--tls-ca /tls/authority.pem --tls-client-ca /tls/authority.pem" in arguments
    assert "--tls-ca" not in serving(rendered("tls"))["args"], "only the OpenAI endpoint asks for it"
    for service in of_kind(objects, "Service"):
        assert all("appProtocol" not in port and port["name"] != "http" for port in service["spec"]["ports"])
    test = named(objects, "Pod", f"{FULLNAME}-test-generation")["spec"]["containers"][0]
    assert "--tls-ca /tls/authority.pem --tls-cert /tls/tls.crt --tls-key /tls/tls.key" in " ".join(test["args"])
    assert {"name": "tls", "mountPath": "/tls", "readOnly": True} in test["volumeMounts"]


def test_who_may_ask_is_said_to_the_server() -> None:
    """Keys from the Secret, which a changed one replaces without a restart: no subPath. gRPC only where it asks too."""
    for name, options, ports in (
        ("defaults", {"--insecure"}, {"grpc"}),
        ("keys", {"--api-key-file"}, {"openai"}),
        ("keys-and-certificates", {"--api-key-file", "--tls-client-ca"}, {"grpc", "openai"}),
        ("values-cpu", {"--insecure", "--allow-old-triton"}, {"grpc", "openai"}),
    ):
        objects = rendered(name)
        args = serving(objects)["args"]
        known = {"--insecure", "--api-key-file", "--tls-client-ca", "--allow-old-triton"}
        assert known & set(args) == options, name
        offered = {port["name"] for port in named(objects, "Service", FULLNAME)["spec"]["ports"]}
        assert offered - {"metrics", "health"} == ports, name
        tests = [o["metadata"]["name"] for o in of_kind(objects, "Pod")]
        assert len(tests) == (2 if "grpc" in ports else 1), name
        if "--api-key-file" in args:
            path = args[args.index("--api-key-file") + 1]
            (mount,) = [m for m in serving(objects)["volumeMounts"] if m["name"] == "keys"]
            assert path.startswith(f"{mount['mountPath']}/")
            assert "subPath" not in mount


def test_browsers_and_idle_connections_are_said_to_the_server() -> None:
    args = serving(rendered("browsers"))["args"]
    origins = [args[i + 1] for i, word in enumerate(args) if word == "--cors-origin"]
    assert origins == ["https://chat.example", "*"]
    assert args[args.index("--keep-alive") + 1] == "400"
    usual = serving(rendered("openai"))["args"]
    assert (usual[usual.index("--keep-alive") + 1], "--cors-origin" in usual) == ("75", False)
    assert "--keep-alive" not in serving(rendered("defaults"))["args"]


def test_tritons_http_stays_in_the_pod(objects: list[Object]) -> None:
    ports = [port for o in of_kind(objects, "Service") for port in o["spec"]["ports"]]
    assert {port["name"] for port in ports} <= {"grpc", "openai", "metrics", "health"}
    assert 8000 not in {port["port"] for port in ports}


def test_what_leads_out_of_the_cluster_has_no_metrics() -> None:
    objects = rendered("load-balancer")
    inside = {"metrics", "health"}
    assert not inside & {p["name"] for p in named(objects, "Service", FULLNAME)["spec"]["ports"]}
    assert inside < {p["name"] for p in named(objects, "Service", f"{FULLNAME}-headless")["spec"]["ports"]}
    test = containers(named(objects, "Pod", f"{FULLNAME}-test-readiness"))[0]
    assert f"http://{FULLNAME}-headless:8003" in test["args"][0]


def test_a_server_that_exports_spans_may_reach_the_collector_and_nothing_else_may() -> None:
    def egress(name: str) -> list[Object]:
        return list(named(rendered(name), "NetworkPolicy", FULLNAME)["spec"]["egress"])

    assert egress("defaults") == []
    assert egress("otel")[1]["ports"] == [{"port": 4318, "protocol": "TCP"}]
    assert egress("otel-without-port")[1]["ports"] == [{"port": 443, "protocol": "TCP"}]
    build = named(rendered("defaults"), "NetworkPolicy", f"{FULLNAME}-engine-build")
    assert build["spec"]["egress"] == []
    hub = named(rendered("hugging-face"), "NetworkPolicy", f"{FULLNAME}-engine-build")
    assert hub["spec"]["egress"][1]["ports"] == [{"port": 443, "protocol": "TCP"}]


def test_the_notes_give_a_command_that_fits() -> None:
    done = helm(
        "helm4", "install", "gemma", str(CHART), "--dry-run=client", f"--namespace={NAMESPACE}",
        values=merged(CASES["openai"].all_values(), {"test": {"prompt": 'say "hi"'}}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert f"kubectl exec -n {NAMESPACE} deploy/{FULLNAME} -c serve -- diffgemma" in notes
    assert "/v1/chat/completions" in notes
    engine = serving(rendered("openai"))["args"][1]
    assert engine in notes


def test_a_chart_of_a_parent_may_hand_global_values_down() -> None:
    assert render(Case({"global": {"imageRegistry": "x"}}))


def _nested(value: object, path: str = "") -> list[tuple[str, Object]]:
    if isinstance(value, dict):
        found = [(path, value)]
        for key, inner in value.items():
            found += _nested(inner, f"{path}.{key}")
        return found
    if isinstance(value, list):
        return [pair for index, inner in enumerate(value) for pair in _nested(inner, f"{path}[{index}]")]
    return []


def test_the_cpu_profile_follows_the_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]
    assert serving(rendered("values-cpu"))["image"] == f"diffgemma:{project['version']}-cpu"


def test_values_files_say_nothing_that_values_yaml_does_not_know() -> None:
    known = yaml.safe_load((CHART / "values.yaml").read_text())
    for path in CHART.glob("values-*.yaml"):
        for key, section in yaml.safe_load(path.read_text()).items():
            assert key in known, path.name
            if isinstance(section, dict) and known[key]:
                assert section.keys() <= known[key].keys(), f"{path.name}: {key}"
