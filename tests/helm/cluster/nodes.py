"""Nodes that exist only in the API: what the scheduler and the node controller need to see of them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tests.helm.cluster.api import Api, Object

LABEL = "diffgemma/played-node"
_TAINT = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}


@dataclass(frozen=True)
class Node:
    """A node with GPUs, as NVIDIA's device plugin and feature discovery present it.

    Args:
        name: of the node.
        product: its label ``nvidia.com/gpu.product``; None for a node without a GPU.
        arch: CPU architecture as Kubernetes names it.
        gpus: how many it has.
    """

    name: str
    product: str | None
    arch: str
    gpus: int = 0

    def register(self, api: Api) -> None:
        """Make the node and let it be ready."""
        labels = {"kubernetes.io/hostname": self.name, "kubernetes.io/arch": self.arch, "kubernetes.io/os": "linux"}
        if self.product:
            labels |= {"nvidia.com/gpu.product": self.product, "nvidia.com/gpu.present": "true"}
        spec = {"taints": [_TAINT]} if self.product else {}
        path = f"/api/v1/nodes/{self.name}"
        if api.find(path) is None:
            api.post(
                "/api/v1/nodes", {"metadata": {"name": self.name, "labels": labels | {LABEL: "true"}}, "spec": spec}
            )
        capacity = {"cpu": "64", "memory": "512Gi", "pods": "110", "ephemeral-storage": "1Ti"}
        if self.product:
            capacity["nvidia.com/gpu"] = str(self.gpus)
        api.patch(f"{path}/status", {"status": {"capacity": capacity, "allocatable": capacity}})
        self.beat(api)

    def beat(self, api: Api) -> None:
        """Tell the node controller that the node is there, as a kubelet does every few seconds."""
        now = timestamp()
        condition = {"type": "Ready", "status": "True", "reason": "Played", "lastHeartbeatTime": now}
        api.patch(f"/api/v1/nodes/{self.name}/status", {"status": {"conditions": [condition]}}, "strategic")

    def remove(self, api: Api) -> None:
        """Delete the node."""
        api.delete(f"/api/v1/nodes/{self.name}")


def foreign(api: Api) -> list[str]:
    """Names of nodes that somebody else made and that would accept the tests' pods."""
    nodes = [node for node in api.items("/api/v1/nodes") if LABEL not in node["metadata"].get("labels", {})]
    return [node["metadata"]["name"] for node in nodes if not _closed(node)]


def timestamp() -> str:
    """Now, as the API writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _closed(node: Object) -> bool:
    taints = node["spec"].get("taints", [])
    return any(
        taint["key"].startswith("node-role.kubernetes.io/") and taint["effect"] != "PreferNoSchedule"
        for taint in taints
    )
