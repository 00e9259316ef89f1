"""The command lines of the rendered chart, run on this machine: engine build, serving, helm tests.

`pods.py` says what of a pod is real here and what is not: the image is not.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helm.chart.rendering import FULLNAME, NAMESPACE, Case, Object, named, of_kind, pods, render
from tests.helm.dockerfile import stages
from tests.helm.pods import Image, Network, Running, folders, namespaces_allowed

pytestmark = [pytest.mark.server, pytest.mark.slow]

CLAIM = f"{FULLNAME}-engines"
SERVICE = FULLNAME
# as a person tries the chart without a GPU
# compiling takes a minute of two CPUs; the builds of tests/builds do it
CPU = Case(
    {"server": {"preStopSeconds": 1, "drainTimeoutSeconds": 10}, "engine": {"overrides": ["compile=false"]}}, ["cpu"]
)


@dataclass
class Cluster:
    """What the chart makes, and what runs of it.

    Args:
        objects: the rendered chart.
        network: that its pods share.
        claims: folder of each claim.
        directory: for the pods' own volumes.
    """

    objects: list[Object]
    network: Network
    claims: dict[str, Path]
    directory: Path

    def pod(self, kind: str, component: str) -> Object:
        """``spec`` of the pods of one component."""
        label = "app.kubernetes.io/component"
        (found,) = [
            template["spec"]
            for name, template in pods(self.objects)
            if name.startswith(kind) and template["metadata"]["labels"][label] == component
        ]
        return dict(found)

    def volumes(self, name: str, pod: Object) -> dict[str, Path]:
        """Volumes for one pod."""
        configs = {o["metadata"]["name"]: o for o in self.objects if o["kind"] == "ConfigMap"}
        return folders(pod, self.directory / name, self.claims, configs)

    def run(self, name: str, pod: Object) -> tuple[int, str]:
        """Run a pod to its end."""
        return self.network.run(name, pod, self.volumes(name, pod))


@pytest.fixture(scope="module", autouse=True)
def containers_can_be_run() -> None:
    if reason := namespaces_allowed():
        pytest.skip(f"containers cannot be run: {reason}")


@pytest.fixture(scope="module")
def image() -> Image:
    stage = stages()["cpu"]
    user, group = stage.user
    # WORKDIR is the user's home, which this machine does not have; nothing may be written there anyway
    return Image(user, group, stage.environment, "/")


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return render(CPU)


@pytest.fixture(scope="module")
def cluster(
    objects: list[Object], image: Image, text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("pods")
    # a copy: the kubelet gives a claim's files to the pod's group
    claims = {CLAIM: directory / "engines", "checkpoint": shutil.copytree(text_checkpoint, directory / "checkpoint")}
    claims[CLAIM].mkdir()
    with Network(directory / "network", image, host_names(objects)) as network:
        yield Cluster(objects, network, claims, directory)


@pytest.fixture(scope="module")
def built(cluster: Cluster) -> Path:
    """The engine that the Job's pod has built."""
    status, said = cluster.run("build", cluster.pod("Job", "engine-build"))
    assert status == 0, said
    (manifest,) = cluster.claims[CLAIM].glob("*/manifest.json")
    return manifest.parent


@pytest.fixture(scope="module")
def serving(cluster: Cluster, built: Path) -> Running:
    """The serving container after its startup probe."""
    pod = cluster.pod("Deployment", "serving")
    volumes = cluster.volumes("serving", pod)
    for container in pod["initContainers"]:
        running = cluster.network.start("serving-init", pod, container, volumes)
        assert running.process.wait(60) == 0, running.text()
    (container,) = pod["containers"]
    running = cluster.network.start("serving", pod, container, volumes)
    cluster.network.await_started(running)
    return running


def test_the_test_pods_fail_where_nothing_serves(objects: list[Object], image: Image, tmp_path: Path) -> None:
    with Network(tmp_path / "network", image, host_names(objects)) as network:
        cluster = Cluster(objects, network, {}, tmp_path)
        for index, pod in enumerate(pods_of_helm_test(objects)):
            status, said = cluster.run(f"test-{index}", pod)
            assert status != 0, said


def test_serving_does_not_start_without_its_engine(cluster: Cluster, tmp_path: Path) -> None:
    """What the initContainer waits for is not there: it says so and fails when its time is over."""
    pod = cluster.pod("Deployment", "serving")
    (tmp_path / "engines").mkdir()
    volumes = folders(pod, tmp_path, {CLAIM: tmp_path / "engines"}, {})
    (container,) = pod["initContainers"]
    hurried = container | {"args": [*container["args"][:-1], "1"]}
    assert container["args"][-2] == "--timeout"
    running = cluster.network.start("no-engine", pod, hurried, volumes)
    assert running.process.wait(60) != 0
    assert "/engines/cpu-" in running.text()


def test_a_checkpoint_that_the_pod_s_user_cannot_read(cluster: Cluster, text_checkpoint: Path, tmp_path: Path) -> None:
    """A volume without support for fsGroup (NFS, hostPath): files keep the mode that safetensors gives them."""
    pod = cluster.pod("Job", "engine-build")
    claims = {CLAIM: tmp_path / "engines", "checkpoint": shutil.copytree(text_checkpoint, tmp_path / "checkpoint")}
    claims[CLAIM].mkdir()
    volumes = folders(pod, tmp_path, claims, {})
    for path in claims["checkpoint"].glob("*.safetensors"):
        path.chmod(0)
    status, said = cluster.network.run("unreadable", pod, volumes)
    assert status == 2, said
    assert "not readable for user 10001" in said
    assert "fix: chmod -R a+rX /checkpoint" in said
    assert "Traceback" not in said


def test_the_job_builds_the_engine_that_serving_waits_for(cluster: Cluster, built: Path) -> None:
    (container,) = cluster.pod("Deployment", "serving")["containers"]
    arguments = container["args"]
    assert arguments[arguments.index("--engine") + 1] == f"/engines/{built.name}"
    assert json.loads((built / "manifest.json").read_text())["gpu"] == "cpu"


def test_a_second_run_of_the_job_changes_nothing(cluster: Cluster, built: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    status, said = cluster.run("build-again", cluster.pod("Job", "engine-build"))
    assert status == 0, said
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == before


def test_it_runs_as_nobody_in_a_root_that_cannot_be_written(cluster: Cluster, serving: Running, image: Image) -> None:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{serving.pid}/status").read_text().splitlines() if ":" in line
    )
    if os.geteuid() == 0:
        assert set(status["Uid"].split()) == {str(image.user)}
    assert int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    assert status["NSpid"].split()[-1] == "1"
    for path in ("/", "/usr", "/opt/diffgemma", "/engines"):
        done = cluster.network.execute(serving, ["touch", f"{path}/written"])
        assert done.returncode != 0, path
        assert "Read-only file system" in done.stderr, done.stderr
    for path in ("/tmp", "/cache", "/dev/shm"):
        assert cluster.network.execute(serving, ["touch", f"{path}/written"]).returncode == 0, path


def test_its_probes_succeed(cluster: Cluster, serving: Running) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert cluster.network.probe(serving, serving.container[probe]), probe


def test_every_port_of_the_service_answers(cluster: Cluster, serving: Running) -> None:
    service = named(cluster.objects, "Service", SERVICE)
    ports = {port["name"]: port["containerPort"] for port in serving.container["ports"]}
    for port in service["spec"]["ports"]:
        # there is no kube-proxy here: a Service's port must be the container's
        assert ports[port["targetPort"]] == port["port"]
        connect = f"import socket; socket.create_connection(({SERVICE!r}, {port['port']}), 5)"
        done = in_the_network(cluster, sys.executable, "-c", connect)
        assert done.status == 0, f"{port}: {done.text}"


def test_a_client_of_the_service_gets_a_streamed_answer(cluster: Cluster, serving: Running) -> None:
    client = [sys.executable, "-m", "triton_repo.cli", "--url", f"{SERVICE}:8001"]
    done = in_the_network(cluster, *client, "--json", "--max-tokens=40", "--ignore-eos", "red")
    assert done.status == 0, done.text
    responses = [json.loads(line) for line in done.text.splitlines()]
    assert len(responses) > 2, "40 tokens are three canvases of 16"
    assert responses[-1]["finish_reason"] == "length"
    assert any(response["text"] for response in responses)


def test_the_openai_endpoint_streams(cluster: Cluster, serving: Running) -> None:
    body = {"model": "diffgemma", "messages": [{"role": "user", "content": "red"}], "max_tokens": 40, "stream": True}
    url = f"http://{SERVICE}:9000/v1/chat/completions"
    command = ["curl", "--silent", "--show-error", "--fail", "--header", "Content-Type: application/json", "--data"]
    done = in_the_network(cluster, *command, json.dumps(body), url)
    assert done.status == 0, done.text
    events = [line.removeprefix("data: ") for line in done.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    assert any(choice["delta"].get("content") for choice in choices)
    assert choices[-1]["finish_reason"] in ("stop", "length")


def test_the_helm_tests_pass(cluster: Cluster, serving: Running) -> None:
    pods = pods_of_helm_test(cluster.objects)
    assert len(pods) >= 2
    for index, pod in enumerate(pods):
        status, said = cluster.run(f"test-{index}", pod)
        assert status == 0, said


def test_it_ends_in_its_grace_period(cluster: Cluster, serving: Running) -> None:
    """Last: the server is gone afterwards."""
    pod = cluster.pod("Deployment", "serving")
    status, seconds = cluster.network.terminate(pod, serving)
    assert status == 0, serving.text()
    assert seconds < pod["terminationGracePeriodSeconds"]
    assert not cluster.network.probe(serving, serving.container["readinessProbe"])


def host_names(objects: list[Object]) -> list[str]:
    """What a cluster's name service knows the chart's Services by."""
    services = [service["metadata"] for service in of_kind(objects, "Service")]
    domains = ("", f".{NAMESPACE}", f".{NAMESPACE}.svc", f".{NAMESPACE}.svc.cluster.local")
    return [f"{service['name']}{domain}" for service in services for domain in domains]


@dataclass
class Done:
    """Exit status of a client and what it printed."""

    status: int
    text: str


def in_the_network(cluster: Cluster, *command: str) -> Done:
    """A command in the pods' network, with the Services' names in /etc/hosts."""
    hosts = cluster.network.directory / "hosts"
    script = f'mount --bind {hosts} /etc/hosts && exec "$@"'
    done = cluster.network.inside(["unshare", "--mount", "sh", "-c", script, "sh", *command])
    return Done(done.returncode, done.stdout + (done.stderr if done.returncode else ""))


def pods_of_helm_test(objects: list[Object]) -> list[Object]:
    """Pods of `helm test`, in its order."""
    hooks = [o for o in objects if o["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"]
    return [
        o["spec"] for o in sorted(hooks, key=lambda o: int(o["metadata"]["annotations"].get("helm.sh/hook-weight", 0)))
    ]
