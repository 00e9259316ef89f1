"""Combinations of switches that are rendered, checked against schemas and looked at."""

from __future__ import annotations

from functools import cache

from tests.helm.chart.rendering import PROFILES, Case, Object, merged, render

_WIDE = {"storage": {"accessMode": "ReadWriteMany", "storageClassName": "nfs"}}
_TLS = {"tls": {"enabled": True, "secretName": "certificate"}}
_OPENAI = {"server": {"openai": True}}
_KEYS = merged(_OPENAI, {"auth": {"existingSecret": "keys"}})
_INSECURE = {"auth": {"insecure": True}}
_PEERS = {
    "clients": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}],
    "scrapers": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.9.0.0/16"]}}],
}
_GATEWAY = {
    "grpcRoute": {"enabled": True, "parentRefs": [{"name": "public", "namespace": "edge", "sectionName": "grpc"}]}
}
_MONITORING = {
    "monitoring": {"scrape": "serviceMonitor", "rules": True, "dashboard": True, "labels": {"release": "prom"}}
}

PROFILE_CASES = {f"values-{p}": Case(profiles=(p,)) for p in PROFILES} | {
    "values-h100+openshift": Case(profiles=("h100", "openshift"))
}
SWITCHES = {
    "defaults": Case(),
    "openai": Case(_OPENAI),
    "tls": Case(_TLS),
    "mutual-tls": Case(merged(_TLS, _OPENAI, {"tls": {"clientCa": True, "caKey": "authority.pem"}})),
    "hpa": Case(merged(_WIDE, {"autoscaling": {"kind": "hpa", "minReplicas": 2}})),
    "keda": Case(merged(_WIDE, {"autoscaling": {"kind": "keda", "targetRatio": 0.5, "maxReplicas": 8}})),
    "service-monitor": Case(_MONITORING),
    "pod-monitor": Case(merged(_MONITORING, {"monitoring": {"scrape": "podMonitor"}})),
    "browsers": Case(
        {"server": {"openai": True, "corsOrigins": ["https://chat.example", "*"], "keepAliveSeconds": 400}}
    ),
    "ingress-openai": Case(
        merged(_KEYS, {"ingress": {"enabled": True, "host": "gemma.example.org", "tlsSecretName": "t"}})
    ),
    "ingress-class": Case(
        merged(_OPENAI, _INSECURE, {"ingress": {"enabled": True, "host": "gemma.example.org", "className": "nginx"}})
    ),
    "keys": Case(_KEYS),
    "keys-and-certificates": Case(
        merged(_OPENAI, _TLS, {"auth": {"existingSecret": "keys", "key": "mine"}, "tls": {"clientCa": True}})
    ),
    "ingress-grpc": Case(
        _INSECURE
        | {
            "ingress": {
                "enabled": True,
                "host": "gemma.example.org",
                "port": "grpc",
                "annotations": {"nginx.ingress.kubernetes.io/backend-protocol": "GRPC"},
            }
        }
    ),
    "grpc-route": Case(merged(_GATEWAY, _INSECURE, {"grpcRoute": {"hostnames": ["gemma.example.org"]}})),
    "otel": Case({"otel": {"endpoint": "http://collector.observability:4318"}}),
    "otel-without-port": Case({"otel": {"endpoint": "https://collector.example.org/v1"}}),
    "no-network-policy": Case({"networkPolicy": {"enabled": False}}),
    "named-peers": Case(merged(_OPENAI, {"networkPolicy": _PEERS})),
    "many-replicas": Case(
        merged(_WIDE, {"server": {"replicas": 4, "maxSurge": "25%", "maxUnavailable": 0}, "spread": "required"})
    ),
    "scaled-to-zero": Case({"server": {"replicas": 0}}),
    "build-on-gpu": Case({"engine": {"build": {"useGpu": True, "priorityClassName": "high"}}}),
    "build-bf16": Case({"engine": {"precision": "bf16", "overrides": ["gpu.limits.slots=8", "compile=false"]}}),
    "hugging-face": Case(
        {
            "checkpoint": {
                "source": "huggingFace",
                "revision": "0123456789abcdef0123456789abcdef01234567",
                "huggingFace": {"repository": "owner/model", "tokenSecret": "hub"},
            }
        }
    ),
    "checkpoint-folder": Case({"checkpoint": {"claim": {"name": "models", "path": "gemma/v1"}, "revision": "v1"}}),
    "checkpoint-image": Case(
        {"checkpoint": {"source": "image", "image": {"reference": "registry.example.org/ck@sha256:" + "a" * 64}}},
        since="1.33",
    ),
    "engine-image": Case(
        {
            "engine": {"source": "image", "image": "registry.example.org/engine:1", "path": "h100"},
            "server": {"replicas": 3},
        },
        since="1.33",
    ),
    "prebuilt": Case(
        {
            "engine": {"source": "prebuilt", "path": "h100-fp8"},
            "storage": {"existingClaim": "engines", "accessMode": "ReadOnlyMany"},
            "server": {"replicas": 3},
        }
    ),
    "existing-claim": Case({"storage": {"existingClaim": "engines"}}),
    "throw-away-claim": Case({"storage": {"keep": False, "storageClassName": "fast", "size": "1Ti"}}),
    "mig-mixed": Case({"gpu": {"resource": "nvidia.com/mig-1g.20gb", "products": ["NVIDIA-H200"], "target": "h200"}}),
    "rtx": Case({"gpu": {"target": "rtx5090", "products": ["NVIDIA-GeForce-RTX-5090"]}, "runtimeClassName": "nvidia"}),
    "by-node-label": Case({"gpu": {"products": []}, "nodeSelector": {"pool": "h100"}, "tolerations": []}),
    "cpu-arm64": Case({"gpu": {"arch": "arm64"}}, profiles=("cpu",)),
    "digest": Case({"image": {"repository": "registry.example.org:5000/x/gemma", "digest": "sha256:" + "0" * 64}}),
    "private-registry": Case(
        {"image": {"repository": "registry.example.org/gemma", "tag": "1.2"}, "imagePullSecrets": [{"name": "pull"}]}
    ),
    "names": Case({"nameOverride": "gemma", "fullnameOverride": "text", "commonLabels": {"team": "nlp"}}),
    "account": Case({"serviceAccount": {"create": False, "name": "restricted"}}),
    "no-budget": Case({"podDisruptionBudget": {"enabled": False}, "spread": "none", "server": {"preStopSeconds": 0}}),
    "node-port": Case(merged(_TLS, {"tls": {"clientCa": True}, "service": {"type": "NodePort"}})),
    "load-balancer": Case(
        _INSECURE
        | {"service": {"type": "LoadBalancer", "annotations": {"a": "b"}}, "monitoring": {"scrape": "serviceMonitor"}}
    ),
    "environment": Case(
        {
            "server": {
                "env": [{"name": "A", "value": "b"}],
                "podLabels": {"x": "y"},
                "podAnnotations": {"z": "1"},
                "logPrompts": True,
            },
            "priorityClassName": "serving",
        }
    ),
    "everything": Case(
        merged(
            _WIDE,
            _TLS,
            _OPENAI,
            _GATEWAY,
            _INSECURE,
            _MONITORING,
            {
                "autoscaling": {"kind": "keda"},
                "networkPolicy": _PEERS,
                "ingress": {"enabled": True, "host": "gemma.example.org"},
                "otel": {"endpoint": "http://collector:4318"},
            },
        ),
        profiles=("h100",),
    ),
}
CASES = PROFILE_CASES | SWITCHES


@cache
def _rendered(name: str) -> tuple[Object, ...]:
    return tuple(render(CASES[name]))


def rendered(name: str) -> list[Object]:
    """The manifests of a case, by Helm 4. They are shared: look, do not change."""
    return list(_rendered(name))
