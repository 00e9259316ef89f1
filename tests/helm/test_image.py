"""The Dockerfile's text against the chart, the package and the Makefile. (No image was built by this test.)"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

from tests.helm.chart.rendering import PROFILES, Case, Object, containers, render
from tests.helm.chart.rendering import pods as pods_of
from tests.helm.dockerfile import Stage, sources, stages
from triton_repo.launcher.bulletins import known
from triton_repo.launcher.tritonserver import BINARY_VARIABLE, Installation

PROJECT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
FINAL = ("build", "serve", "cpu")
# of Debian and Ubuntu, in every base
SYSTEM_COMMANDS = {"sleep"}
# switches that add containers or change their commands
SWITCHES: Object = {
    "server": {"openai": True, "logPrompts": True},
    "tls": {"enabled": True, "secretName": "tls", "clientCa": True},
}
HUB: Object = {
    "checkpoint": {"source": "huggingFace", "revision": "abc", "huggingFace": {"repository": "owner/name"}},
}


@pytest.fixture(scope="module")
def image() -> dict[str, Stage]:
    return stages()


@pytest.fixture(scope="module")
def pods() -> list[tuple[str, Object]]:
    """Template of every pod of every profile."""
    found = []
    for profile in PROFILES:
        for values in (SWITCHES, HUB):
            objects = render(Case(values, [profile]))
            found += [(f"{profile}: {name}", pod) for name, pod in pods_of(objects)]
    assert len(found) >= len(PROFILES) * 2 * 3, "the Job, the Deployment and test pods of each"
    return found


# Of this distribution, in the image (`uv pip install` in the Dockerfile), and what those ask for.
EXTRAS = ("", "serve", "export", "engine")


def commands_of(package: str) -> set[str]:
    """Commands of a package and of everything that it needs without an extra."""
    commands: set[str] = set()
    seen: set[str] = set()
    left = [package]
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        commands |= {entry.name for entry in found.entry_points if entry.group == "console_scripts"}
        for line in found.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in EXTRAS):
                left.append(requirement.name)
    return commands


def test_each_command_of_the_chart_is_in_the_image(pods: list[tuple[str, Object]]) -> None:
    # a virtual environment has these
    known = commands_of("diffgemma") | {"python", "python3"} | SYSTEM_COMMANDS
    used: set[str] = set()
    for name, pod in pods:
        for container in containers(pod):
            assert container.get("command"), f"{name}: {container['name']} leaves its command to the image"
            used.add(container["command"][0])
            hooks = container.get("lifecycle", {}).values()
            used |= {hook["exec"]["command"][0] for hook in hooks if "exec" in hook}
    assert {"diffgemma-serve", "diffgemma-engine", "diffgemma", "hf", "sleep"} <= used
    assert used <= known, f"not in the image: {used - known}"


@pytest.mark.parametrize("target", FINAL)
def test_the_commands_are_on_the_path(image: dict[str, Stage], target: str) -> None:
    stage = image[target]
    first = stage.environment["PATH"].split(":")[0]
    assert first == "/opt/diffgemma/bin"
    assert any(line.endswith("/opt/diffgemma /opt/diffgemma") for line in stage.values("COPY"))
    assert stage.command[0] in PYPROJECT["project"]["scripts"]


@pytest.mark.parametrize("target", FINAL)
def test_the_user_is_the_chart_s(image: dict[str, Stage], pods: list[tuple[str, Object]], target: str) -> None:
    user, group = image[target].user
    assert user > 0
    assert group > 0
    made = " ".join(image[target].values("RUN"))
    assert f"useradd --uid {user} --gid {group} " in made
    assert f"groupadd --gid {group} " in made
    for name, pod in pods:
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True, name
        if not name.startswith("openshift"):
            assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (user, group, group), name


@pytest.mark.parametrize("target", FINAL)
def test_no_mount_hides_what_the_image_holds(
    image: dict[str, Stage], pods: list[tuple[str, Object]], target: str
) -> None:
    held = {PurePosixPath(line.split()[-1]) for line in image[target].values("COPY")}
    held |= {PurePosixPath(part) for part in image[target].environment["PATH"].split(":")}
    for name, pod in pods:
        for container in containers(pod):
            for mount in container.get("volumeMounts", []):
                path = PurePosixPath(mount["mountPath"])
                hidden = [str(one) for one in held if one.is_relative_to(path) or path.is_relative_to(one)]
                assert not hidden, f"{name}: a mount at {path} hides {hidden}"
            for variable in container.get("env", []):
                assert variable["name"] not in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH"), f"{name}: {variable}"


@pytest.mark.parametrize("target", FINAL)
def test_every_path_that_is_written_is_a_volume(
    image: dict[str, Stage], pods: list[tuple[str, Object]], target: str
) -> None:
    """The root is read-only: caches, home and temporary files must be on mounts."""
    for name, pod in pods:
        for container in containers(pod):
            environment = image[target].environment | {v["name"]: v.get("value", "") for v in container.get("env", [])}
            writable = [PurePosixPath(m["mountPath"]) for m in container["volumeMounts"] if not m.get("readOnly")]
            for variable in (
                "HOME",
                "TMPDIR",
                "XDG_CACHE_HOME",
                "TRITON_CACHE_DIR",
                "TORCHINDUCTOR_CACHE_DIR",
                "CUDA_CACHE_PATH",
            ):
                path = PurePosixPath(environment[variable])
                assert any(path.is_relative_to(mount) for mount in writable), f"{name}: {variable}={path} is read-only"


@pytest.mark.parametrize(("profile", "target"), [("h100", "build"), ("dgx-spark", "build"), ("cpu", "cpu")])
def test_make_image_makes_what_the_chart_asks_for(profile: str, target: str) -> None:
    command = ["make", "--dry-run", "--no-print-directory", "image", f"TARGET={target}"]
    printed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    (line,) = (line for line in printed.splitlines() if ".ci/image" in line)
    image = shlex.split(line)[1]
    for name, pod in pods_of(render(Case(profiles=[profile]))):
        assert {container["image"] for container in containers(pod)} == {image}, name


def test_bases(image: dict[str, Stage]) -> None:
    pinned = re.compile(r"@sha256:[0-9a-f]{64}$")
    assert image["serve"].base == image["build"].base
    assert image["serve"].base.startswith("nvcr.io/nvidia/tritonserver:")
    assert pinned.search(image["cpu"].base)
    assert pinned.search(image["uv"].base)
    assert image["cpu"].base.startswith("docker.io/library/python:3.11.")


def test_what_is_installed(image: dict[str, Stage]) -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    makefile = (PROJECT / "Makefile").read_text()
    (torch,) = set(re.findall(r"torch==[0-9.]+", makefile))
    for name in ("cpu-environment", "cuda-environment", "build-environment"):
        lines = [line for line in image[name].values("RUN") if "uv pip install" in line]
        assert "--index-url https://download.pytorch.org/whl/" in lines[0], "torch first, from the platform's index"
        assert all(torch in line for line in lines)
        for wanted in re.findall(r"/src\[([a-z,-]+)\]", " ".join(lines)):
            assert set(wanted.split(",")) <= set(extras), wanted
    packages = [pattern.rstrip("*") for pattern in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
    for name in ("cpu-environment", "cuda-environment"):
        assert set(sources(image[name])) >= {*packages, "pyproject.toml", PYPROJECT["project"]["readme"]}


def test_the_base_has_no_known_vulnerability_and_its_stub_our_python(image: dict[str, Stage]) -> None:
    release = re.search(r":(\d\d)\.(\d\d)-py3", image["serve"].base)
    assert release is not None
    # each month has a release, and 24.10 is 2.51
    months = (int(release[1]) - 24) * 12 + int(release[2]) - 10
    assert known(f"2.{51 + months - 1}.0") == []  # 25.07 raised the patch only
    runs = " ".join(image["cuda-environment"].values("RUN"))
    assert "uv venv --python /usr/bin/python3.12 /opt/diffgemma" in runs
    assert 'rm -r "$site/pytriton/tritonserver"' in runs


def test_the_base_s_tritonserver_is_found_with_its_stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The layout of NVIDIA's image: no folder of stubs, the one stub is in its backend's."""
    monkeypatch.delenv(BINARY_VARIABLE, raising=False)
    wheel = Installation.find()
    assert wheel.stub is not None
    root = tmp_path / "opt" / "tritonserver"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "tritonserver").symlink_to(wheel.binary)
    binary = shutil.copy(wheel.binary, root / "bin" / "copy")
    os.replace(binary, root / "bin" / "tritonserver")
    shutil.copytree(wheel.backends, root / "backends")
    (root / "TRITON_VERSION").write_text("2.73.0\n")
    shutil.copy(wheel.stub, root / "backends" / "python" / "triton_python_backend_stub")
    monkeypatch.setenv("PATH", str(root / "bin"), prepend=os.pathsep)
    found = Installation.find()
    assert found == Installation(root / "bin" / "tritonserver", root / "backends", None, wheel.libraries, "2.73.0")
    copy = found.backend_directory(tmp_path / "copy") / "python" / "triton_python_backend_stub"
    assert copy.read_bytes() == wheel.stub.read_bytes()


def test_the_build_context_holds_what_is_copied(image: dict[str, Stage]) -> None:
    allowed = [line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in ("cpu-environment", "cuda-environment"):
        for source in sources(image[name]):
            assert (PROJECT / source).exists(), source
            assert source in allowed, f".dockerignore leaves {source} out"


ENGINE = """#!/bin/bash
echo "{name} $*" >> {record}
[ "$1" != info ] || exit {status}
"""


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    """A PATH without container engines but with what the script needs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "dirname"):
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return folder


def make_image(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROJECT / ".ci" / "image"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": str(path)}, check=False)


def put(folder: Path, name: str, status: int) -> Path:
    record = folder / "record"
    (folder / name).write_text(ENGINE.format(name=name, record=record, status=status))
    (folder / name).chmod(0o755)
    return record


def test_without_a_container_engine_make_image_says_so(engines: Path) -> None:
    done = make_image(engines, "diffgemma:1", "cpu")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no container engine found; allowed: docker, podman or buildah")
    put(engines, "docker", status=1)
    done = make_image(engines, "diffgemma:1", "cpu")
    assert done.returncode == 2
    assert done.stderr.startswith("error: docker is installed and does not answer 'docker info'")


def test_make_image_takes_the_engine_that_answers(engines: Path) -> None:
    put(engines, "docker", status=1)
    record = put(engines, "podman", status=0)
    done = make_image(engines, "diffgemma:1", "cpu", "linux/arm64", "PYTHON_IMAGE=python:3.11")
    assert done.returncode == 0, done.stderr
    options = "--target cpu --tag diffgemma:1 --platform linux/arm64 --build-arg PYTHON_IMAGE=python:3.11"
    assert record.read_text().splitlines() == [
        "docker info",
        "podman info",
        f"podman build --file Dockerfile {options} .",
    ]
