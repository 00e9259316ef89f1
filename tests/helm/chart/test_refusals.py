"""Wrong values are refused with their path, what is allowed and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.chart.rendering import Case, Object, template

GPU = "nvidia.com/gpu"
# path in the error -> wrong values
WRONG: dict[str, Object] = {
    "/replicas": {"replicas": 2},
    "/server/replica": {"server": {"replica": 2}},
    "/server/replicas": {"server": {"replicas": "2"}},
    "/server/startTimeoutSeconds": {"server": {"startTimeoutSeconds": 600}},
    "/server/drainTimeoutSeconds": {"server": {"drainTimeoutSeconds": 0}},
    "/server/preStopSeconds": {"server": {"preStopSeconds": "10s"}},
    "/server/maxSurge": {"server": {"maxSurge": "a quarter"}},
    "/server/shmSize": {"server": {"shmSize": "1 GB"}},
    "/server/resources/limits/nvidia.com/gpu": {"server": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}},
    "/server/resources/requests/memory": {"server": {"resources": {"requests": {"memory": "64 Gi"}}}},
    "/server/env/0": {"server": {"env": [{"name": "A", "valeu": "b"}]}},
    "/server/openai": {"server": {"openai": "yes"}},
    "/server/corsOrigins": {"server": {"corsOrigins": "https://chat.example"}},
    "/server/corsOrigins/0": {"server": {"corsOrigins": ["https://chat.example/"]}},
    "/server/keepAliveSeconds": {"server": {"keepAliveSeconds": 0}},
    "/server/podLabels/a": {"server": {"podLabels": {"a": 1}}},
    "/gpu/target": {"gpu": {"target": "a100"}},
    "/gpu/resource": {"gpu": {"resource": "gpu"}},
    "/gpu/count": {"gpu": {"count": 0}},
    "/gpu/products": {"gpu": {"products": "NVIDIA-GB10"}},
    "/gpu/products/0": {"gpu": {"products": ["NVIDIA H100 80GB HBM3"]}},
    "/gpu/arch": {"gpu": {"arch": "aarch64"}},
    "/image/repository": {"image": {"repository": "Registry/Image"}},
    "/image/tag": {"image": {"tag": "a:b"}},
    "/image/digest": {"image": {"digest": "0123"}},
    "/image/pullPolicy": {"image": {"pullPolicy": "Sometimes"}},
    "/imagePullSecrets/0": {"imagePullSecrets": ["pull"]},
    "/checkpoint/source": {"checkpoint": {"source": "s3"}},
    "/checkpoint/claim/path": {"checkpoint": {"claim": {"path": "/models"}}},
    "/checkpoint/huggingFace/repository": {"checkpoint": {"huggingFace": {"repository": "model"}}},
    "/engine/source": {"engine": {"source": "download"}},
    "/engine/precision": {"engine": {"precision": "int8"}},
    "/engine/overrides/0": {"engine": {"overrides": ["out=/tmp/x"]}},
    "/engine/path": {"engine": {"path": "../x"}},
    "/engine/build/backoffLimit": {"engine": {"build": {"backoffLimit": -1}}},
    "/storage/accessMode": {"storage": {"accessMode": "RWX"}},
    "/storage/size": {"storage": {"size": "100GB"}},
    "/tolerations/0/effect": {"tolerations": [{"key": "a", "effect": "NoSchedul"}]},
    "/spread": {"spread": True},
    "/podSecurity/runAsUser": {"podSecurity": {"runAsUser": 0}},
    "/service/type": {"service": {"type": "Headless"}},
    "/tls/enabled": {"tls": {"enabled": "true"}},
    "/ingress/port": {"ingress": {"port": "http"}},
    "/auth/insecure": {"auth": {"insecure": "true"}},
    "/auth/key": {"auth": {"key": "a/b"}},
    "/grpcRoute/parentRefs/0": {"grpcRoute": {"parentRefs": [{"namespace": "edge"}]}},
    "/autoscaling/kind": {"autoscaling": {"kind": "both"}},
    "/autoscaling/targetRatio": {"autoscaling": {"targetRatio": 0}},
    "/autoscaling/minReplicas": {"autoscaling": {"minReplicas": 0}},
    "/podDisruptionBudget/maxUnavailable": {"podDisruptionBudget": {"maxUnavailable": "many"}},
    "/networkPolicy/clients/0": {"networkPolicy": {"clients": [{"namespace": "a"}]}},
    "/monitoring/scrape": {"monitoring": {"scrape": "annotations"}},
    "/monitoring/interval": {"monitoring": {"interval": 15}},
    "/otel/endpoint": {"otel": {"endpoint": "collector:4317"}},
    "/test/prompt": {"test": {"prompt": ""}},
    "/commonLabels/a": {"commonLabels": {"a": True}},
    # null takes a default away
    "/storage": {"storage": {"size": None}},
}
# what fits only together: (values, what the error says)
TOGETHER: dict[str, tuple[Object, tuple[str, ...], str]] = {
    "grace shorter than the drain": (
        {"server": {"terminationGracePeriodSeconds": 75}},
        ("server.terminationGracePeriodSeconds: 75", "more than 75", "--set server.terminationGracePeriodSeconds=90"),
        "1.33",
    ),
    "two nodes, one volume": (
        {"server": {"replicas": 2}},
        ("storage.accessMode:", "attached to one node", "ReadWriteMany"),
        "1.33",
    ),
    "a scaled pool, one volume": (
        {"autoscaling": {"kind": "keda"}},
        ("storage.accessMode:", "up to 4 pods"),
        "1.33",
    ),
    "a read-only volume to build on": (
        {"storage": {"accessMode": "ReadOnlyMany"}},
        ("storage.accessMode:", "the Job writes the engine"),
        "1.33",
    ),
    "no product": (
        {"gpu": {"products": []}},
        ("gpu.products: []", "nvidia.com/gpu.product", "kubectl get nodes"),
        "1.33",
    ),
    "no checkpoint": (
        {"checkpoint": {"claim": {"name": ""}}},
        ("checkpoint.claim.name:", "engine.source=prebuilt"),
        "1.33",
    ),
    "no image of a checkpoint": ({"checkpoint": {"source": "image"}}, ("checkpoint.image.reference:",), "1.33"),
    "no revision on the Hub": (
        {"checkpoint": {"source": "huggingFace", "huggingFace": {"repository": "a/b"}}},
        ("checkpoint.huggingFace.repository:", "checkpoint.revision=COMMIT"),
        "1.33",
    ),
    "volumes of images before they were": (
        {"engine": {"source": "image", "image": "registry/engine:1"}},
        ("engine.source:", "Kubernetes v1.30", "came with 1.33"),
        "1.30",
    ),
    "checkpoints of images before they were": (
        {"checkpoint": {"source": "image", "image": {"reference": "a"}}},
        ("checkpoint.source:", "1.33"),
        "1.27",
    ),
    "no claim with the engine": (
        {"engine": {"source": "prebuilt"}},
        ("storage.existingClaim:", "engine.path=FOLDER"),
        "1.33",
    ),
    "no image with the engine": ({"engine": {"source": "image"}}, ("engine.image:",), "1.33"),
    "more at least than at most": (
        {"autoscaling": {"kind": "hpa", "minReplicas": 9}, "storage": {"accessMode": "ReadWriteMany"}},
        ("autoscaling.minReplicas: 9", "autoscaling.maxReplicas=9"),
        "1.33",
    ),
    "a rollout that cannot move": (
        {"server": {"maxUnavailable": 0}},
        ("server.maxUnavailable: 0", "nothing could ever be replaced"),
        "1.33",
    ),
    "TLS without a certificate": ({"tls": {"enabled": True}}, ("tls.secretName:", "kubectl create secret tls"), "1.33"),
    "an ingress to nothing": (
        {"ingress": {"enabled": True, "host": "a.example.org"}},
        ("ingress.port:", "--set server.openai=true"),
        "1.33",
    ),
    "an ingress to what stays in the pod": (
        {
            "ingress": {"enabled": True, "host": "a.example.org", "port": "grpc"},
            "auth": {"existingSecret": "keys"},
            "server": {"openai": True},
        },
        ("ingress.port:", "gRPC knows no keys"),
        "1.33",
    ),
    "keys that nothing asks for": (
        {"auth": {"existingSecret": "keys"}},
        ("auth.existingSecret:", "--set server.openai=true"),
        "1.33",
    ),
    "an ingress for anybody": (
        {"ingress": {"enabled": True, "host": "a.example.org"}, "server": {"openai": True}},
        ("ingress.enabled: true", "auth.existingSecret=SECRET", "auth.insecure=true"),
        "1.33",
    ),
    "a route for anybody": (
        {"grpcRoute": {"enabled": True, "parentRefs": [{"name": "public"}]}},
        ("grpcRoute.enabled: true", "auth.insecure=true"),
        "1.33",
    ),
    "a load balancer for anybody": (
        {"service": {"type": "LoadBalancer"}},
        ('service.type: "LoadBalancer"', "auth.existingSecret=SECRET", "auth.insecure=true"),
        "1.33",
    ),
    "a node's port for anybody": ({"service": {"type": "NodePort"}}, ('service.type: "NodePort"',), "1.33"),
    "certificates that nobody is asked for": (
        {"service": {"type": "NodePort"}, "tls": {"enabled": True, "secretName": "certificate"}},
        ('service.type: "NodePort"', "tls.clientCa"),
        "1.33",
    ),
    "keys for anybody": (
        {"auth": {"existingSecret": "keys", "insecure": True}, "server": {"openai": True}},
        ("auth.insecure: true", "leave it out"),
        "1.33",
    ),
    "pages that ask nothing": (
        {"server": {"corsOrigins": ["*"]}},
        ("server.corsOrigins:", "--set server.openai=true"),
        "1.33",
    ),
    "an ingress without a host": ({"ingress": {"enabled": True, "port": "grpc"}}, ("ingress.host:",), "1.33"),
    "spans by gRPC": (
        {"otel": {"endpoint": "http://collector:4317"}},
        ("otel.endpoint:", "--set otel.endpoint=http://collector:4318"),
        "1.33",
    ),
    "a route without a gateway": ({"grpcRoute": {"enabled": True}}, ("grpcRoute.parentRefs:",), "1.33"),
    "a cluster that is too old": ({}, ("kubeVersion", "1.26"), "1.26"),
}


def test_there_are_enough() -> None:
    assert len(WRONG) >= 25


@pytest.mark.parametrize("path", WRONG)
def test_the_schema_refuses(path: str) -> None:
    done = template(Case(WRONG[path]))
    assert done.returncode != 0, "rendered"
    place, key = path.removesuffix(f"/{GPU}"), GPU
    if place == path:
        place, _, key = path.rpartition("/")
    unknown = f"additional properties '{key}' not allowed"
    at = "''" if path.count("/") == 1 else f"'{place}'"
    assert f"at '{path}'" in done.stderr or (unknown in done.stderr and f"at {at}" in done.stderr), done.stderr


def test_helm_3_refuses_the_same() -> None:
    for path, values in list(WRONG.items())[::7]:
        done = template(Case(values), "helm3")
        assert done.returncode != 0, path
        assert "values don't meet the specifications of the schema" in done.stderr, path


@pytest.mark.parametrize("version", ["helm4", pytest.param("helm3", marks=pytest.mark.helm)])
@pytest.mark.parametrize("name", TOGETHER)
def test_values_that_do_not_fit_together_are_refused(name: str, version: str) -> None:
    values, expected, kubernetes = TOGETHER[name]
    done = template(Case(values), version, kubernetes)
    assert done.returncode != 0, "rendered"
    for part in expected:
        assert part in done.stderr, done.stderr


@pytest.mark.parametrize("values", [{}, {"engine": {"source": "build"}}], ids=str)
def test_right_values_are_not_refused(values: dict[str, Any]) -> None:
    assert template(Case(values)).returncode == 0
