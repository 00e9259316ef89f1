"""Where pods run, what they may do, how they are probed and how they end."""

from __future__ import annotations

import pytest

from tests.helm.chart.cases import CASES, rendered
from tests.helm.chart.rendering import Case, Object, containers, of_kind, one, pods, render, serving, variables

_AFFINITY = "diffgemma/engine-volume"


@pytest.fixture(params=CASES)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """The manifests of each case."""
    return rendered(request.param)


def deployed(name: str) -> Object:
    return dict(one(rendered(name), "Deployment")["spec"]["template"]["spec"])


def test_no_pod_has_a_right_that_it_does_not_need(objects: list[Object]) -> None:
    for name, pod in pods(objects):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert not [volume for volume in spec["volumes"] if "hostPath" in volume], name
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name
    for account in of_kind(objects, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    assert not [o for o in objects if "Role" in o["kind"]]


def test_ids_are_the_image_s_or_the_cluster_s() -> None:
    ids = ("runAsUser", "runAsGroup", "fsGroup")
    for _, pod in pods(rendered("defaults")):
        assert [pod["spec"]["securityContext"][field] for field in ids] == [10001, 10001, 10001]
    for _, pod in pods(rendered("values-h100+openshift")):
        assert not set(ids) & pod["spec"]["securityContext"].keys()


def test_the_gpu_goes_to_the_container_that_serves() -> None:
    spec = deployed("mig-mixed")
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/mig-1g.20gb"] == "1"
    assert not any("mig" in name for name in spec["initContainers"][0]["resources"]["limits"])
    assert "NVIDIA_VISIBLE_DEVICES" not in variables(spec["containers"][0])


def test_without_a_gpu_nothing_speaks_of_one() -> None:
    for name in ("values-cpu", "cpu-arm64"):
        for _, pod in pods(rendered(name)):
            assert "tolerations" not in pod["spec"]
            assert "nodeAffinity" not in pod["spec"].get("affinity", {})
            for container in containers(pod):
                assert not any("nvidia" in key for key in container["resources"]["limits"])
                assert variables(container)["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_build_serving_and_tests_can_run_on_the_same_nodes(objects: list[Object]) -> None:
    specs = {name: pod["spec"] for name, pod in pods(objects)}
    assert len({str(spec.get("tolerations")) for spec in specs.values()}) == 1
    assert len({str(spec.get("nodeSelector")) for spec in specs.values()}) == 1
    assert len({str(spec.get("runtimeClassName")) for spec in specs.values()}) == 1
    working = [spec for name, spec in specs.items() if not name.startswith("Pod/")]
    assert len({str(spec.get("affinity")) for spec in working}) == 1


@pytest.mark.parametrize(
    ("name", "arch", "product"),
    [
        ("values-h100", "amd64", "NVIDIA-H100-80GB-HBM3"),
        ("values-dgx-spark", "arm64", "NVIDIA-GB10"),
        ("rtx", "amd64", "NVIDIA-GeForce-RTX-5090"),
    ],
)
def test_pods_go_where_the_engine_runs(name: str, arch: str, product: str) -> None:
    spec = deployed(name)
    assert spec["nodeSelector"]["kubernetes.io/arch"] == arch
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    (expression,) = term["matchExpressions"]
    assert expression["key"] == "nvidia.com/gpu.product"
    assert product in expression["values"]


def test_pods_that_share_a_volume_of_one_node_meet_there() -> None:
    objects = rendered("defaults")
    both = [pod for name, pod in pods(objects) if not name.startswith("Pod/")]
    assert len(both) == 2
    for pod in both:
        (term,) = pod["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        assert term["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items(), "the first may start"
        assert pod["metadata"]["labels"][_AFFINITY] == "gemma-diffgemma-engines"
    for name in ("many-replicas", "prebuilt", "engine-image"):
        assert "podAffinity" not in deployed(name).get("affinity", {}), name


def test_probes_ask_the_server_itself_and_leave_it_time(objects: list[Object]) -> None:
    container = serving(objects)
    health = next(port for port in container["ports"] if port["name"] == "health")
    assert health["containerPort"] == 8003
    paths = {"startupProbe": "ready", "readinessProbe": "ready", "livenessProbe": "live"}
    for probe, path in paths.items():
        assert container[probe]["httpGet"] == {"path": f"/v2/health/{path}", "port": "health"}
    startup = container["startupProbe"]
    budget = startup["periodSeconds"] * startup["failureThreshold"]
    given = option(container, "--start-timeout")
    assert budget >= 1800
    assert budget > given, "the server says why before the kubelet kills it"


def test_a_pod_drains_before_it_is_killed(objects: list[Object]) -> None:
    container = serving(objects)
    command = container.get("lifecycle", {"preStop": {"exec": {"command": ["sleep", "0"]}}})["preStop"]["exec"][
        "command"
    ]
    assert command[0] == "sleep"
    spent = float(command[1]) + option(container, "--drain-timeout") + 5
    assert spent < one(objects, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]


def test_budgets_follow_the_values() -> None:
    container = serving(render(Case({"server": {"startTimeoutSeconds": 7200}})))
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 7260
    assert option(container, "--start-timeout") == 7200


def test_pods_spread_over_nodes() -> None:
    (constraint,) = deployed("defaults")["topologySpreadConstraints"]
    assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"
    assert deployed("many-replicas")["topologySpreadConstraints"][0]["whenUnsatisfiable"] == "DoNotSchedule"
    assert "topologySpreadConstraints" not in deployed("no-budget")


def test_a_new_chart_alone_starts_no_pod_again(objects: list[Object]) -> None:
    for o in (*of_kind(objects, "Deployment"), *of_kind(objects, "Job")):
        assert "helm.sh/chart" not in o["spec"]["template"]["metadata"]["labels"]


def option(container: Object, name: str) -> float:
    """Value of an option on the container's command line."""
    arguments = container["args"]
    return float(arguments[arguments.index(name) + 1])
