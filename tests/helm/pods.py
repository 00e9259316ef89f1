"""Pods of a rendered chart, run on this machine: their commands, environment, users and mounts, in Linux namespaces.

What is the same as in a cluster: command and arguments with ``$(VAR)`` expanded, the container's environment and
nothing of this machine's, user and groups, a read-only root, no capability, no new privileges, process 1 of its own
process namespace, volumes where the pod mounts them (emptyDirs and claims given to ``fsGroup``), a network namespace
with nothing but loopback in which every Service's name leads to the pod, preStop, SIGTERM, the grace period, probes.

What is not: the image. System files, Python and this project come from this machine, mounted where the Dockerfile puts
them. Resources are not limited, seccomp is not applied, NetworkPolicies do nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Object = dict[str, Any]

_CONTAINER = Path(__file__).with_name("container.py")
_PROJECT = Path(__file__).parents[2]
# keeps the network namespace, and ends with this process
_HOLDER = """
import fcntl, socket, struct, sys
with socket.socket() as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up, running
print("ready", flush=True)
sys.stdin.read()
"""


def namespaces_allowed() -> str | None:
    """None where containers can be run; else the reason why not."""
    tools = [tool for tool in ("unshare", "nsenter", "setpriv", "mount") if shutil.which(tool) is None]
    if tools:
        return f"{', '.join(tools)} missing (util-linux)"
    command = [*_unshare(), "--net", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "none", "/mnt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"no namespaces here: {done.stderr.strip()}"


def _unshare() -> list[str]:
    return ["unshare"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user"]


@dataclass(frozen=True)
class Image:
    """What the Dockerfile's image gives to a container.

    Args:
        user, group: of ``USER``.
        environment: of ``ENV``, with ``PATH``.
        directory: ``WORKDIR``.
        python: where the virtual environment lies.
    """

    user: int
    group: int
    environment: Mapping[str, str]
    directory: str
    python: str = "/opt/diffgemma"


@dataclass
class Running:
    """A started container.

    Args:
        process: of ``unshare``, whose only child is process 1 of the container.
        log: what the container writes.
        container: its part of the manifest.
    """

    process: subprocess.Popen[bytes]
    log: Path
    container: Object

    @property
    def pid(self) -> int:
        """Id on this machine of the container's process 1."""
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)

    def kill(self) -> int:
        """End it, and with its process 1 all others of its namespace. Returns its exit status."""
        os.kill(self.pid, signal.SIGKILL)
        return self.process.wait()

    def text(self) -> str:
        """Everything written so far."""
        return self.log.read_text(errors="replace")


@dataclass
class Network:
    """Loopback of its own, that all pods share, as a context manager; ends every container that still runs.

    Args:
        directory: an empty folder: logs, roots, volumes, /etc/hosts.
        image: what every container starts from.
        names: host names that lead to loopback: the Services.
    """

    directory: Path
    image: Image
    names: Sequence[str] = ()
    _holder: subprocess.Popen[bytes] | None = None
    _running: list[Running] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        lines = ["127.0.0.1 localhost", *(f"127.0.0.1 {name}" for name in self.names)]
        (self.directory / "hosts").write_text("\n".join(lines) + "\n")
        command = [*_unshare(), "--net", sys.executable, "-c", _HOLDER]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n", "no network namespace"
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for running in self._running:
            if running.process.poll() is None:
                running.kill()
        assert self._holder is not None
        self._holder.communicate(b"")

    def start(self, name: str, pod: Object, container: Object, volumes: Mapping[str, Path]) -> Running:
        """Start one container of a pod.

        Args:
            name: of its log and root on this machine.
            pod: the pod's ``spec``.
            container: one of its containers or initContainers.
            volumes: folders (or files) of this machine by the name of the pod's volume.
        """
        security = pod.get("securityContext", {}) | container.get("securityContext", {})
        user = security.get("runAsUser", self.image.user)
        group = security.get("runAsGroup", self.image.group)
        environment = dict(self.image.environment) | _environment(container)
        command = [*container.get("command", []), *container.get("args", [])]
        root = self.directory / f"{name}.root"
        root.mkdir()
        given = {
            "root": str(root),
            # parents before what is mounted into them
            "mounts": sorted(
                [*self._of_image(), *_mounts(container, volumes)], key=lambda mount: str(mount["target"]).count("/")
            ),
            "read_only_root": bool(security.get("readOnlyRootFilesystem")),
            "user": user,
            "group": group,
            "groups": [g for g in (security.get("fsGroup"), *security.get("supplementalGroups", [])) if g is not None],
            "mapped": os.geteuid() != 0,
            "command": [_expanded(part, environment) for part in command],
            "environment": environment,
            "directory": container.get("workingDir", self.image.directory),
            "hosts": str(self.directory / "hosts"),
        }
        specification = self.directory / f"{name}.json"
        specification.write_text(json.dumps(given, indent=2))
        log = self.directory / f"{name}.log"
        command = [*self._enter(), "unshare", "--mount", "--pid", "--fork", "--", sys.executable, "-I"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, str(_CONTAINER), str(specification)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        running = Running(process, log, container)
        self._running.append(running)
        return running

    def run(self, name: str, pod: Object, volumes: Mapping[str, Path], seconds: float = 900.0) -> tuple[int, str]:
        """Run a pod that ends by itself: its initContainers, then its container. Returns exit status and output."""
        said = ""
        for index, container in enumerate([*pod.get("initContainers", []), *pod["containers"]]):
            running = self.start(f"{name}-{index}", pod, container, volumes)
            status = running.process.wait(seconds)
            said += running.text()
            if status != 0:
                return status, said
        return 0, said

    def inside(self, command: Sequence[str], seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a command of this machine in the pods' network, as a client of the Service."""
        return subprocess.run([*self._enter(), *command], capture_output=True, text=True, timeout=seconds, check=False)

    def probe(self, running: Running, probe: Object) -> bool:
        """One HTTP probe, as the kubelet sends it."""
        get = probe["httpGet"]
        ports = {port.get("name"): port["containerPort"] for port in running.container.get("ports", [])}
        port = ports.get(get["port"], get["port"])
        seconds = str(probe.get("timeoutSeconds", 1))
        url = f"{get.get('scheme', 'HTTP').lower()}://127.0.0.1:{port}{get.get('path', '/')}"
        done = self.inside(
            ["curl", "--silent", "--max-time", seconds, "--output", "/dev/null", "--write-out", "%{http_code}", url]
        )
        return done.returncode == 0 and 200 <= int(done.stdout) < 400

    def await_started(self, running: Running, seconds: float = 300.0) -> None:
        """Send the startup probe until it succeeds.

        Raises:
            AssertionError: with the container's output, when it ended or the time is over.
        """
        probe = running.container["startupProbe"]
        deadline = time.monotonic() + min(seconds, probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3))
        while not self.probe(running, probe):
            assert running.process.poll() is None, f"ended with {running.process.returncode}:\n{running.text()}"
            assert time.monotonic() < deadline, f"no startup within {seconds:.0f} s:\n{running.text()}"
            time.sleep(0.5)

    def execute(self, running: Running, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as its user: `kubectl exec`, an exec hook."""
        target = ["nsenter", f"--target={running.pid}", "--mount", "--pid", "--root", "--wd"]
        security = json.loads((self.directory / f"{running.log.stem}.json").read_text())
        if security["mapped"]:
            target = [*target, "--user", "--preserve-credentials"]
        else:
            target = [*target, f"--setuid={security['user']}", f"--setgid={security['group']}"]
        return subprocess.run(
            [*target, *command], capture_output=True, text=True, timeout=60, check=False, env=security["environment"]
        )

    def terminate(self, pod: Object, running: Running) -> tuple[int, float]:
        """preStop, SIGTERM to process 1, SIGKILL after the grace period. Returns exit status and seconds taken."""
        begun = time.monotonic()
        hook = running.container.get("lifecycle", {}).get("preStop", {})
        if "exec" in hook:
            assert self.execute(running, hook["exec"]["command"]).returncode == 0, "the preStop hook fails"
        elif "sleep" in hook:
            time.sleep(hook["sleep"]["seconds"])
        os.kill(running.pid, signal.SIGTERM)
        left = pod.get("terminationGracePeriodSeconds", 30) - (time.monotonic() - begun)
        try:
            status = running.process.wait(left)
        except subprocess.TimeoutExpired:
            status = running.kill()
        return status, time.monotonic() - begun

    def _enter(self) -> list[str]:
        assert self._holder is not None, "only inside the context"
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self._holder.pid}", "--net", *user, "--"]

    def _of_image(self) -> list[Object]:
        """This project's environment: where the image has it, and where it finds itself on this machine."""
        mounts = [{"source": sys.prefix, "target": self.image.python, "read_only": True}]
        for folder in (sys.base_prefix, sys.prefix, str(_PROJECT)):
            # /usr is there already
            if not folder.startswith("/usr"):
                mounts.append({"source": folder, "target": folder, "read_only": True})
        return mounts


def folders(pod: Object, directory: Path, claims: Mapping[str, Path], configs: Mapping[str, Object]) -> dict[str, Path]:
    """A folder of this machine for each volume of a pod.

    Args:
        pod: its ``spec``.
        directory: where to make the new ones.
        claims: folders by the name of a claim.
        configs: rendered ConfigMaps and Secrets by name.

    Raises:
        AssertionError: for a claim or a ConfigMap that is not there, or a kind of volume that the chart does not use.
    """
    group = pod.get("securityContext", {}).get("fsGroup")
    made: dict[str, Path] = {}
    for volume in pod.get("volumes", []):
        name = volume["name"]
        folder = directory / name
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            assert claim in claims, f"volume {name}: no claim {claim}, only {', '.join(claims)}"
            folder = claims[claim]
        else:
            folder.mkdir(parents=True)
            if "configMap" in volume:
                for key, text in configs[volume["configMap"]["name"]]["data"].items():
                    (folder / key).write_text(text)
            else:
                assert "emptyDir" in volume, f"volume {name}: {volume} is not known here"
        # without root the pod's user is mapped to the folder's owner
        if os.geteuid() == 0:
            _give(folder, group)
        made[name] = folder
    return made


def _give(folder: Path, group: int | None) -> None:
    """What the kubelet does with ``fsGroup``: everything belongs to the group, which may read and write it."""
    if group is None:
        folder.chmod(0o777)
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, -1, group)
        path.chmod(path.stat().st_mode | (0o2770 if path.is_dir() else 0o660))


def _mounts(container: Object, volumes: Mapping[str, Path]) -> list[Object]:
    return [
        {
            "source": str(volumes[mount["name"]] / mount.get("subPath", "")),
            "target": mount["mountPath"],
            "read_only": bool(mount.get("readOnly")),
        }
        for mount in container.get("volumeMounts", [])
    ]


def _environment(container: Object) -> dict[str, str]:
    found: dict[str, str] = {}
    for variable in container.get("env", []):
        if "valueFrom" in variable:
            path = variable["valueFrom"]["fieldRef"]["fieldPath"]  # the chart refers to nothing else by default
            found[variable["name"]] = {"status.podIP": "127.0.0.1"}.get(path, path.replace(".", "-"))
        else:
            found[variable["name"]] = _expanded(variable.get("value", ""), found)
    return found


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    """``$(NAME)`` as the kubelet expands it: an unknown one stays."""
    return re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), text)
