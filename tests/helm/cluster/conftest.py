"""A cluster for the session; for each test a namespace of its own, once with Helm 4 and once with Helm 3."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nemo_diffgemma.errors import FieldError
from tests.helm.cluster import crds, nodes
from tests.helm.cluster.api import Api, ApiError
from tests.helm.cluster.control_plane import ControlPlane, assets
from tests.helm.cluster.kubelet import Kubelet
from tests.helm.cluster.nodes import Node
from tests.helm.cluster.releases import Release, chart_for
from tests.helm.cluster.tools import tools

H100 = Node("h100-0", "NVIDIA-H100-80GB-HBM3", "amd64", gpus=2)
SPARK = Node("spark-0", "NVIDIA-GB10", "arm64", gpus=1)
PLAIN = Node("plain-0", None, "amd64")


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="session")
def api(directory: Path) -> Iterator[Api]:
    """The cluster of KUBECONFIG, else a control plane from KUBEBUILDER_ASSETS."""
    if kubeconfig := os.environ.get("KUBECONFIG"):
        api = Api(Path(kubeconfig))
        others = nodes.foreign(api)
        assert not others, f"KUBECONFIG: {api.server} has nodes of its own ({', '.join(others)}); use an empty cluster"
        yield api
        return
    try:
        binaries = assets()
    except FieldError as error:
        pytest.exit(f"error: {error}", returncode=2)  # once, not for every test
    with ControlPlane(binaries, directory / "control-plane") as control_plane:
        yield Api(control_plane.kubeconfig)
        control_plane.check()


@pytest.fixture(scope="session")
def prepared(api: Api) -> Api:
    """The cluster with the objects that a real one has beforehand: CRDs, the NVIDIA RuntimeClass."""
    crds.install(api)
    path = "/apis/node.k8s.io/v1/runtimeclasses"
    if api.find(f"{path}/nvidia") is None:
        api.post(path, {"metadata": {"name": "nvidia"}, "handler": "nvidia"})
    return api


@pytest.fixture(scope="session")
def chart(api: Api, directory: Path) -> Path:
    return chart_for(api.version(), directory)


@pytest.fixture
def kubelet(prepared: Api, tmp_path: Path) -> Iterator[Kubelet]:
    """An H100 node with two GPUs, a GB10 node with one, a node without a GPU."""
    with Kubelet(prepared, [H100, SPARK, PLAIN], tmp_path / "volumes") as kubelet:
        yield kubelet
    assert kubelet.failure is None, f"the played kubelet failed: {kubelet.failure!r}"


@pytest.fixture(params=["helm4", "helm3"])
def release(
    request: pytest.FixtureRequest, prepared: Api, kubelet: Kubelet, chart: Path, tmp_path: Path
) -> Iterator[Release]:
    """A release that is not installed yet, and a claim `checkpoint` for it."""
    helm, kubectl = tools(request.param)
    namespace = f"e2e-{re.sub('[^a-z0-9]+', '-', request.node.originalname)[:40].strip('-')}-{secrets.token_hex(3)}"
    prepared.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
    claim = {
        "metadata": {"name": "checkpoint"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "100Gi"}}},
    }
    prepared.post(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", claim)
    yield Release(helm, kubectl, prepared.kubeconfig, chart, namespace, tmp_path / "helm")
    prepared.delete(f"/api/v1/namespaces/{namespace}")


@pytest.fixture
def refused(prepared: Api, release: Release) -> Callable[[str], str]:
    """Evict a pod; the server's words when it refuses, empty when it evicts."""
    group = "policy/v1" if prepared.version() >= (1, 22) else "policy/v1beta1"

    def evict(pod: str) -> str:
        path = f"/api/v1/namespaces/{release.namespace}/pods/{pod}/eviction"
        body = {"apiVersion": group, "kind": "Eviction", "metadata": {"name": pod, "namespace": release.namespace}}
        try:
            prepared.post(path, body)
        except ApiError as error:
            if error.status != 429:
                raise
            return error.message
        return ""

    return evict
