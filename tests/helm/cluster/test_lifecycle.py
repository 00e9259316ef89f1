"""install, upgrade, rollback, test, scale, drain, uninstall on a real API server.

API server, scheduler and controllers are real; pods are played (see `kubelet.py`): nothing runs in them, probes and
preStop hooks are not executed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.helm.cluster.api import Object, wait_for
from tests.helm.cluster.kubelet import MANIFEST, Kubelet
from tests.helm.cluster.nodes import Node
from tests.helm.cluster.releases import Release

pytestmark = pytest.mark.helm_e2e

CLAIM = "checkpoint.claim.name=checkpoint"
ONE = ("--set", CLAIM, "--set", "gpu.products={NVIDIA-H100-80GB-HBM3}")
# both GPUs of the H100 node are taken
FULL = (*ONE, "--set", "server.replicas=2,storage.accessMode=ReadWriteMany")


def ready(release: Release) -> list[Object]:
    """Serving pods that are ready and not on their way out."""

    def good(pod: Object) -> bool:
        conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
        return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]

    return [pod for pod in release.get("pods", component="serving") if good(pod)]


def names(objects: list[Object]) -> list[str]:
    return sorted(o["metadata"]["name"] for o in objects)


def engine_of(pod: Object) -> str:
    """Folder of the engine that a serving pod serves."""
    (serve,) = pod["spec"]["containers"]
    return str(serve["args"][serve["args"].index("--engine") + 1])


def nodes_of(pods: list[Object]) -> list[str]:
    return [pod["spec"]["nodeName"] for pod in pods]


def engines(kubelet: Kubelet, release: Release) -> set[str]:
    """Finished engines on the release's volume, as serving names them."""
    volume = kubelet.volume(release.namespace, f"{release.fullname}-engines")
    return {f"/engines/{path.parent.name}" for path in volume.glob(f"*/{MANIFEST}")}


def served(release: Release) -> set[str]:
    return {engine_of(pod) for pod in ready(release)}


def test_install_waits_for_the_engine(release: Release, kubelet: Kubelet) -> None:
    kubelet.builds_may_end.clear()
    helm = release.begin("install", release.name, str(release.chart), *ONE, *release.wait)
    try:
        building = wait_for("the build runs", lambda: release.get("pods", component="engine-build"), 30, release.events)
        waiting = wait_for(
            "serving waits",
            lambda: [p for p in release.get("pods", component="serving") if p["status"].get("initContainerStatuses")],
            30,
            release.events,
        )
        time.sleep(3)
        assert helm.poll() is None, helm.communicate()
        assert not ready(release)
        assert not engines(kubelet, release)
        (state,) = (status["state"] for status in waiting[0]["status"]["initContainerStatuses"])
        assert "running" in state
        assert "nvidia.com/gpu" not in str(building[0]["spec"]["containers"][0]["resources"]), "one GPU is enough"
    finally:
        kubelet.builds_may_end.set()
        text, _ = helm.communicate(timeout=100)
    assert helm.returncode == 0, text
    (job,) = release.get("jobs")
    assert job["status"]["succeeded"] == 1
    assert release.rollout(30).status == 0, release.events()
    (pod,) = ready(release)
    assert engines(kubelet, release) == {engine_of(pod)} == {job["metadata"]["annotations"]["diffgemma/engine"]}


def test_an_upgrade_of_a_full_node_ends(release: Release) -> None:
    release.installed(*FULL)
    before = names(ready(release))
    assert len(before) == 2
    release.upgraded("--set", "server.podAnnotations.round=two")
    after = ready(release)
    assert len(after) == 2
    assert not set(names(after)) & set(before)
    assert {pod["metadata"]["annotations"]["round"] for pod in after} == {"two"}


def test_with_a_surge_the_same_upgrade_would_not(release: Release) -> None:
    """What the default guards against: that test above can fail."""
    release.installed(*FULL, "--set", "server.maxSurge=1,server.maxUnavailable=0")
    done = release.upgrade("--set", "server.podAnnotations.round=two", "--wait", "--timeout", "8s")
    assert done.status != 0, done.text
    assert release.rollout(3).status != 0
    assert "Insufficient nvidia.com/gpu" in release.events()
    assert len(ready(release)) == 2, "the old pods serve on"


def test_a_changed_input_builds_anew_beside_the_old_engine(release: Release, kubelet: Kubelet) -> None:
    release.installed(*FULL)
    (old_job,) = names(release.get("jobs"))
    (old,) = served(release)
    kubelet.builds_may_end.clear()
    try:
        done = release.upgrade("--set", "engine.precision=bf16")
        assert done.status == 0, done.text
        (new_job,) = names(release.get("jobs"))
        assert new_job != old_job
        wait_for(
            "a pod waits for the new engine",
            lambda: [p for p in release.get("pods", component="serving") if engine_of(p) != old],
            30,
            release.events,
        )
        time.sleep(3)
        assert engines(kubelet, release) == {old}
        assert served(release) == {old}, "the pod that is not replaced yet serves the old engine"
    finally:
        kubelet.builds_may_end.set()
    wait_for(
        "two pods serve the new engine",
        lambda: len(ready(release)) == 2 and old not in served(release),
        60,
        release.events,
    )
    (new,) = served(release)
    assert engines(kubelet, release) == {old, new}


def test_an_engine_built_ahead_spares_a_single_pod_the_wait(release: Release, kubelet: Kubelet) -> None:
    """With one GPU the old pod goes before the new one waits: a second release builds on the same volume first."""
    release.installed(*ONE)
    (old,) = served(release)
    volume = f"storage.existingClaim={release.fullname}-engines"
    ahead = replace(release, name="ahead")
    done = ahead.install(*ONE, "--set", f"engine.precision=bf16,server.replicas=0,{volume}", *ahead.wait)
    assert done.status == 0, done.text + release.events()
    assert served(release) == {old}
    (new,) = engines(kubelet, release) - {old}
    assert ahead.run("uninstall", ahead.name).status == 0
    kubelet.builds_may_end.clear()  # nothing has to be built
    try:
        release.upgraded("--set", "engine.precision=bf16")
    finally:
        kubelet.builds_may_end.set()
    assert served(release) == {new}


def test_a_rollback_finds_its_engine_again(release: Release, kubelet: Kubelet) -> None:
    release.installed(*ONE)
    (old,) = served(release)
    release.upgraded("--set", "engine.precision=bf16")
    assert served(release) != {old}
    kubelet.builds_may_end.clear()  # nothing has to be built
    try:
        release.rolled_back(1)
        assert served(release) == {old}
    finally:
        kubelet.builds_may_end.set()


def test_helm_test_tells_a_server_from_none(release: Release) -> None:
    release.installed(*ONE)
    done = release.run("test", release.name, "--timeout", "60s")
    assert done.status == 0, done.text + release.events()
    assert release.kube("scale", f"deployment/{release.fullname}", "--replicas=0").status == 0
    wait_for("no pod", lambda: not release.get("pods", component="serving"), 30)
    assert release.run("test", release.name, "--timeout", "60s").status != 0


def test_scaling(release: Release) -> None:
    release.installed(*ONE, "--set", "storage.accessMode=ReadWriteMany")
    assert len(ready(release)) == 1
    release.upgraded("--set", "server.replicas=2")
    assert len(ready(release)) == 2
    release.upgraded("--set", "server.replicas=0")
    wait_for("no pod", lambda: not release.get("pods", component="serving"), 30)


def test_an_autoscaler_keeps_its_number_of_pods(release: Release) -> None:
    scaled = ("--set", "storage.accessMode=ReadWriteMany,autoscaling.kind=hpa,autoscaling.maxReplicas=2")
    release.installed(*ONE, *scaled)
    (autoscaler,) = release.get("hpa")
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == release.fullname
    # in place of the autoscaler, which has no metrics here
    assert release.kube("scale", f"deployment/{release.fullname}", "--replicas=2").status == 0
    wait_for("two pods", lambda: len(ready(release)) == 2, 30, release.events)
    release.upgraded("--set", "server.podAnnotations.round=two")
    assert release.get("deployments")[0]["spec"]["replicas"] == 2


def test_everything_optional_is_accepted_and_goes_again(release: Release) -> None:
    switches = (
        "autoscaling.kind=keda,monitoring.scrape=serviceMonitor,monitoring.rules=true,monitoring.dashboard=true",
        "grpcRoute.enabled=true,grpcRoute.parentRefs[0].name=gateway,server.openai=true",
        "ingress.enabled=true,ingress.host=gemma.example,storage.accessMode=ReadWriteMany,auth.insecure=true",
    )
    release.installed(*ONE, "--set", ",".join(switches))
    optional = ("scaledobjects", "servicemonitors", "prometheusrules", "grpcroutes", "ingresses", "networkpolicies")
    for kind in optional:
        assert release.get(kind), kind
    release.upgraded("--set", "monitoring.scrape=podMonitor,monitoring.rules=false,ingress.enabled=false")
    assert release.get("podmonitors")
    for kind in ("servicemonitors", "prometheusrules", "ingresses"):
        assert not release.get(kind), kind
    assert release.run("uninstall", release.name, "--wait", "--timeout", "60s").status == 0
    for kind in (*optional, "podmonitors"):
        assert not release.get(kind), kind


def test_a_drain_leaves_one_pod_at_work(release: Release, kubelet: Kubelet, refused: Callable[[str], str]) -> None:
    release.installed(*FULL)
    first, second = names(ready(release))
    assert refused(first) == ""
    wait_for("the budget is used up", lambda: len(ready(release)) == 1, 20)
    assert "disruption budget" in refused(second), "the other pod of the node has nowhere to go"
    other = Node("h100-1", "NVIDIA-H100-80GB-HBM3", "amd64", gpus=2)
    kubelet.add(other)
    try:
        wait_for("two pods again", lambda: len(ready(release)) == 2, 30, release.events)
        drain = release.begin_kube("drain", "h100-0", "--delete-emptydir-data", "--timeout=90s")
        fewest = 2
        while drain.poll() is None:
            fewest = min(fewest, len(ready(release)))
        assert drain.returncode == 0, drain.communicate()
        wait_for("two pods on the other node", lambda: nodes_of(ready(release)) == ["h100-1"] * 2, 30, release.events)
    finally:
        release.kube("uncordon", "h100-0")
        kubelet.drop(other)
    assert fewest >= 1


@pytest.mark.parametrize("keep", [True, False])
def test_uninstall_keeps_the_engines_when_told_to(release: Release, keep: bool) -> None:
    release.installed(*ONE, "--set", f"storage.keep={str(keep).lower()}")
    done = release.run("uninstall", release.name, "--wait", "--timeout", "60s")
    assert done.status == 0, done.text
    wait_for("no pod", lambda: not release.get("pods"), 30)
    assert not release.get("deployments")
    assert not release.get("jobs")
    kept = names([c for c in release.get("pvc") if "deletionTimestamp" not in c["metadata"]])
    assert kept == (["checkpoint", f"{release.fullname}-engines"] if keep else ["checkpoint"])
    if keep:
        release.installed(*ONE)  # and takes the claim that was kept
