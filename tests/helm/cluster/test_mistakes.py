"""What a person sees who asked for something that the cluster cannot give."""

from __future__ import annotations

import pytest

from tests.helm.cluster.api import Api, wait_for
from tests.helm.cluster.releases import Done, Release
from tests.helm.cluster.test_lifecycle import ONE, ready

pytestmark = pytest.mark.helm_e2e

SHORT = ("--wait", "--timeout", "6s")


def seen(release: Release, *parts: str) -> str:
    """The warnings of the namespace, once every part is in one line of them."""

    def line() -> str:
        return next((line for line in release.events().splitlines() if all(part in line for part in parts)), "")

    return str(wait_for(f"an event with {parts}", line, 20, release.events))


def not_installed(release: Release, done: Done) -> None:
    """Helm 4 says so itself; with Helm 3 one has to ask for the rollout."""
    assert (done.status != 0) == release.helm_waits_for_one_pod, done.text
    assert release.rollout(5).status != 0, done.text


def test_a_quota_without_gpus(release: Release, prepared: Api) -> None:
    quota = {"metadata": {"name": "gpus"}, "spec": {"hard": {"requests.nvidia.com/gpu": "0"}}}
    prepared.post(f"/api/v1/namespaces/{release.namespace}/resourcequotas", quota)
    done = release.install(*ONE, *SHORT)
    not_installed(release, done)
    seen(release, "FailedCreate", "exceeded quota: gpus", "requested: requests.nvidia.com/gpu=1")


def test_a_gpu_product_that_no_node_has(release: Release) -> None:
    done = release.install("--set", "checkpoint.claim.name=checkpoint", "--set", "gpu.products={NVIDIA-B300}", *SHORT)
    not_installed(release, done)
    seen(release, "FailedScheduling", "didn't match")
    assert not ready(release)


def test_a_checkpoint_claim_that_is_not_there(release: Release) -> None:
    options = ("--set", "checkpoint.claim.name=nowhere", "--set", "gpu.products={NVIDIA-H100-80GB-HBM3}")
    done = release.install(*options, *SHORT)
    not_installed(release, done)
    seen(release, "FailedScheduling", 'persistentvolumeclaim "nowhere" not found')


def test_an_engine_for_another_gpu(release: Release, prepared: Api) -> None:
    """Serving refuses it; the pod says why."""
    release.installed(*ONE)
    (pod,) = ready(release)
    folder = pod["metadata"]["annotations"]["diffgemma/engine"].removeprefix("/engines/")
    claim = f"{release.fullname}-engines"
    other = ("engine.source=prebuilt", f"storage.existingClaim={claim}", f"engine.path={folder}", "gpu.target=h200")
    done = release.upgrade("--set", ",".join(other), *SHORT)
    not_installed(release, done)

    def said() -> str:
        states = [
            status["state"].get("terminated", {}).get("message", "")
            for pod in release.get("pods", component="serving")
            for status in pod["status"].get("initContainerStatuses", [])
        ]
        return "\n".join(filter(None, states))

    assert "built for h100, not h200" in wait_for("the pod says why", said, 20, release.events)


def test_too_few_gpus_on_the_node(release: Release) -> None:
    done = release.install(*ONE, "--set", "gpu.count=4", *SHORT)
    not_installed(release, done)
    seen(release, "FailedScheduling", "Insufficient nvidia.com/gpu")
