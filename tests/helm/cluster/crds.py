"""CustomResourceDefinitions without a schema: a bare API server can then store the chart's optional objects."""

from __future__ import annotations

from tests.helm.cluster.api import Api

_KINDS = (
    ("keda.sh", "v1alpha1", "ScaledObject"),
    ("monitoring.coreos.com", "v1", "ServiceMonitor"),
    ("monitoring.coreos.com", "v1", "PodMonitor"),
    ("monitoring.coreos.com", "v1", "PrometheusRule"),
    ("gateway.networking.k8s.io", "v1", "GRPCRoute"),
)
_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def install(api: Api) -> None:
    """Make those that are not there."""
    for group, version, kind in _KINDS:
        plural = f"{kind.lower()}s"
        name = f"{plural}.{group}"
        if api.find(f"{_PATH}/{name}"):
            continue
        schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        # groups under k8s.io have to say whether their API was reviewed
        annotations = {"api-approved.kubernetes.io": "unapproved, for a test"} if group.endswith(".k8s.io") else {}
        api.post(
            _PATH,
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": name, "annotations": annotations},
                "spec": {
                    "group": group,
                    "scope": "Namespaced",
                    "names": {"plural": plural, "singular": kind.lower(), "kind": kind},
                    "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
                },
            },
        )
