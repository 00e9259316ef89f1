"""The build Job, the folder it writes, and what serving waits for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from tests.helm.chart.cases import CASES, rendered
from tests.helm.chart.rendering import (
    ROOT,
    Case,
    Object,
    containers,
    merged,
    named,
    of_kind,
    one,
    render,
    serving,
    variables,
)

CONF = ROOT / "trtllm_build" / "conf"


def job(values: Mapping[str, Any]) -> Object:
    return one(render(Case(values)), "Job")


def build_arguments(objects: list[Object]) -> dict[str, str]:
    container = one(objects, "Job")["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["diffgemma-engine"]
    assert container["args"][0] == "build"
    return dict(argument.partition("=")[::2] for argument in container["args"][1:])


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.values.get("engine", {}).get("source") is None]
)
def test_serving_waits_for_and_serves_what_the_job_builds(name: str) -> None:
    objects = rendered(name)
    given = build_arguments(objects)
    wait = one(objects, "Deployment")["spec"]["template"]["spec"]["initContainers"][0]
    assert wait["command"] == ["diffgemma-engine"]
    folder, target = given["out"], given["gpu"]
    assert wait["args"][:4] == ["wait", folder, "--gpu", target]
    assert serving(objects)["args"][:2] == ["--engine", folder]
    assert folder.startswith(f"/engines/{target.replace('_', '-')}-")
    assert folder.rpartition("/")[2] in one(objects, "Job")["metadata"]["name"]


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": {"revision": "v2"}},
        {"checkpoint": {"claim": {"path": "other"}}},
        {"image": {"tag": "0.2.0"}},
        {"image": {"digest": "sha256:" + "1" * 64}},
        {"gpu": {"products": ["NVIDIA-H100-NVL"]}},
        {"gpu": {"target": "h200"}},
        {"engine": {"precision": "bf16"}},
        {"engine": {"overrides": ["gpu.limits.slots=8"]}},
        {"engine": {"build": {"useGpu": True}}},
    ],
    ids=str,
)
def test_what_decides_the_engine_changes_its_folder(change: Object) -> None:
    before, after = render(Case()), render(Case(change))
    assert build_arguments(before)["out"] != build_arguments(after)["out"]
    assert one(before, "Job")["metadata"]["name"] != one(after, "Job")["metadata"]["name"]


@pytest.mark.parametrize(
    "change",
    [
        {"server": {"replicas": 0, "openai": True}},
        {"engine": {"waitTimeoutSeconds": 60}},
        {"service": {"type": "NodePort"}, "auth": {"insecure": True}},
        {"monitoring": {"rules": True}},
        {"checkpoint": {"huggingFace": {"tokenSecret": "other"}}},
    ],
    ids=str,
)
def test_what_does_not_touch_the_build_leaves_the_job_alone(change: Object) -> None:
    assert job({}) == job(change)


@pytest.mark.parametrize(
    "change",
    [
        {"engine": {"build": {"resources": {"requests": {"cpu": "4"}}}}},
        {"tolerations": [{"operator": "Exists"}]},
        {"storage": {"existingClaim": "engines"}},
        {"engine": {"build": {"backoffLimit": 5}}},
    ],
    ids=str,
)
def test_another_template_is_another_job_for_the_same_engine(change: Object) -> None:
    """A Job's template cannot be changed: an upgrade that did would fail."""
    before, after = render(Case()), render(Case(change))
    assert build_arguments(before)["out"] == build_arguments(after)["out"]
    assert one(before, "Job")["metadata"]["name"] != one(after, "Job")["metadata"]["name"]


def test_the_order_of_products_does_not_matter() -> None:
    folders = {
        build_arguments(render(Case({"gpu": {"products": products}})))["out"] for products in (["A", "B"], ["B", "A"])
    }
    assert len(folders) == 1


def test_a_digest_is_the_same_in_another_registry() -> None:
    digest = "sha256:" + "1" * 64
    images = [{"repository": name, "digest": digest} for name in ("a.example.org/x", "b.example.org/y")]
    folders = {build_arguments(render(Case({"image": image})))["out"] for image in images}
    assert len(folders) == 1


def test_another_release_with_the_same_inputs_finds_the_engine() -> None:
    assert build_arguments(render(Case()))["out"] == build_arguments(render(Case(), release="other"))["out"]


def test_targets_and_precisions_are_those_of_the_build() -> None:
    schema = yaml.safe_load((ROOT / "helm" / "diffgemma" / "values.schema.json").read_text())["properties"]
    assert set(schema["gpu"]["properties"]["target"]["enum"]) == {path.stem for path in (CONF / "gpu").glob("*.yaml")}
    assert set(schema["engine"]["properties"]["precision"]["enum"]) - {""} == {
        path.stem for path in (CONF / "precision").glob("*.yaml")
    }


@pytest.mark.parametrize("name", ["defaults", "build-bf16", "hugging-face", "values-cpu", "values-dgx-spark"])
def test_every_key_of_the_command_is_one_of_the_build(name: str) -> None:
    known = yaml.safe_load((CONF / "build.yaml").read_text()).keys() | {"gpu", "precision"}
    for key in build_arguments(rendered(name)):
        assert key.partition(".")[0] in known, key


def test_the_job_takes_no_gpu_that_serving_waits_with() -> None:
    """On a node with one GPU, serving holds it while it waits: a build that asked for one would wait for serving."""
    build = job({})["spec"]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in build["resources"]["limits"]
    assert variables(build)["NVIDIA_VISIBLE_DEVICES"] == "void"
    tuned = one(rendered("build-on-gpu"), "Job")["spec"]["template"]["spec"]
    assert tuned["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "NVIDIA_VISIBLE_DEVICES" not in variables(tuned["containers"][0])
    assert tuned["priorityClassName"] == "high"


def test_the_job_is_an_ordinary_resource() -> None:
    """A hook before installation could not mount the chart's claim; one after it would not let --wait end."""
    assert not [key for key in one(render(Case()), "Job")["metadata"]["annotations"] if key.startswith("helm.sh/hook")]


def test_a_checkpoint_from_the_hub_is_downloaded_before_the_build() -> None:
    objects = rendered("hugging-face")
    pod = one(objects, "Job")["spec"]["template"]["spec"]
    (download,) = pod["initContainers"]
    folder = build_arguments(objects)["checkpoint"]
    revision = "0123456789abcdef0123456789abcdef01234567"
    assert folder == f"/engines/checkpoints/owner--model-{revision}"
    assert download["command"] + download["args"] == [
        "hf", "download", "owner/model", "--revision", revision, "--local-dir", folder,
    ]  # fmt: skip
    assert "HF_HUB_OFFLINE" not in variables(download)
    assert variables(pod["containers"][0])["HF_HUB_OFFLINE"] == "1"
    token = next(v for v in download["env"] if v["name"] == "HF_TOKEN")
    assert token["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}


@pytest.mark.parametrize(("name", "folder"), [("prebuilt", "/engines/h100-fp8"), ("engine-image", "/engines/h100")])
def test_an_engine_that_is_there_is_not_built(name: str, folder: str) -> None:
    objects = rendered(name)
    assert not of_kind(objects, "Job")
    assert serving(objects)["args"][:2] == ["--engine", folder]
    wait = one(objects, "Deployment")["spec"]["template"]["spec"]["initContainers"][0]
    assert wait["args"] == ["wait", folder, "--gpu", "h100", "--timeout", "0"]


def test_an_image_is_mounted_as_a_volume() -> None:
    volumes = one(rendered("engine-image"), "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert {
        "name": "engines",
        "image": {"reference": "registry.example.org/engine:1", "pullPolicy": "IfNotPresent"},
    } in volumes


def test_a_rollout_may_take_as_long_as_build_and_start_do() -> None:
    values = {"engine": {"waitTimeoutSeconds": 5000}, "server": {"startTimeoutSeconds": 2000}}
    assert one(render(Case(values)), "Deployment")["spec"]["progressDeadlineSeconds"] >= 7000


def test_helm_test_reads_the_service_and_generates() -> None:
    objects = render(Case({"test": {"prompt": "say 'hi'", "maxTokens": 7}}))
    pod = named(objects, "Pod", "gemma-diffgemma-test-generation")
    (container,) = containers(pod)
    assert container["command"] == ["diffgemma"]
    assert container["args"] == [
        "--url", "gemma-diffgemma.llm.svc:8001", "--json", "--max-tokens", "7", "say 'hi'",
    ]  # fmt: skip
    ready = named(objects, "Pod", "gemma-diffgemma-test-readiness")
    assert "http://gemma-diffgemma:8003/v2/health/ready" in containers(ready)[0]["args"][0]
    assert all(p["metadata"]["annotations"]["helm.sh/hook"] == "test" for p in (pod, ready))


def test_values_are_told_apart() -> None:
    """The cases above compare renderings: equal ones for different values would prove nothing."""
    assert render(Case()) != render(Case(merged({"server": {"replicas": 0}})))
