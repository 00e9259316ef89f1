"""A played kubelet: it takes scheduled pods through their phases without running anything.

It reads each container's command line, and plays what that command would do with the volumes that the pod mounts:
``diffgemma-engine build`` writes a manifest, ``diffgemma-engine wait`` ends when there is one, ``diffgemma-serve`` is
ready when its engine is there, the test pods succeed when the Service that they name has a ready pod. A command that it
does not know fails, so that a chart that calls something else is noticed. Claims get a folder of this machine as their
volume.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.helm.cluster.api import Api, ApiError, Object
from tests.helm.cluster.nodes import Node, timestamp

MANIFEST = "manifest.json"
_PERIOD_S = 0.25
_BEAT_S = 5.0


class State(Enum):
    """What a container does."""

    RUNS = "runs"
    SERVES = "serves"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Played:
    """State of a container and what it would have written."""

    state: State
    message: str = ""


class Kubelet:
    """Plays every pod that is scheduled to one of ``nodes``; a context manager.

    Args:
        api: connection to the cluster.
        nodes: what to register; :meth:`add` adds one later.
        directory: folder for the volumes of claims.
    """

    def __init__(self, api: Api, nodes: Sequence[Node], directory: Path):
        self._api = api
        self._nodes = list(nodes)
        self._directory = directory
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kubelet", daemon=True)
        self._leaving: dict[str, float] = {}
        self._shown: dict[str, str] = {}
        self._beaten = 0.0
        self._address = 0
        self.failure: Exception | None = None
        # a test that clears it holds every build up
        self.builds_may_end = threading.Event()
        self.builds_may_end.set()

    def __enter__(self) -> Self:
        for node in self._nodes:
            node.register(self._api)
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        for node in self._nodes:
            node.remove(self._api)

    def add(self, node: Node) -> None:
        """Register one more node."""
        node.register(self._api)
        self._nodes.append(node)

    def drop(self, node: Node) -> None:
        """Take a node away."""
        self._nodes.remove(node)
        node.remove(self._api)

    def volume(self, namespace: str, claim: str) -> Path:
        """Folder that a claim's volume is."""
        return self._directory / namespace / claim

    def _work(self) -> None:
        while not self._ended.is_set():
            try:
                self._tick()
            except Exception as error:  # a thread's exception is seen by nobody: the fixture asks for `failure`
                # a pod may be gone between two calls
                if not (isinstance(error, ApiError) and error.status in (404, 409)):
                    self.failure = error
            self._ended.wait(_PERIOD_S)

    def _tick(self) -> None:
        if time.monotonic() - self._beaten > _BEAT_S:
            self._beaten = time.monotonic()
            for node in list(self._nodes):
                node.beat(self._api)
        for claim in self._api.items("/api/v1/persistentvolumeclaims"):
            self._provision(claim)
        names = {node.name for node in self._nodes}
        for pod in self._api.items("/api/v1/pods"):
            if pod["spec"].get("nodeName") in names or (
                pod["metadata"].get("deletionTimestamp") and "nodeName" not in pod["spec"]
            ):
                self._attend(pod)

    def _provision(self, claim: Object) -> None:
        """What a storage driver does: a volume for a claim that has none."""
        namespace, name = claim["metadata"]["namespace"], claim["metadata"]["name"]
        if claim["status"].get("phase") == "Bound" or claim["metadata"].get("deletionTimestamp"):
            return
        folder = self.volume(namespace, name)
        folder.mkdir(parents=True, exist_ok=True)
        volume = {
            "metadata": {"name": f"played-{claim['metadata']['uid']}"},
            "spec": {
                "capacity": claim["spec"]["resources"]["requests"],
                "accessModes": claim["spec"]["accessModes"],
                "storageClassName": claim["spec"].get("storageClassName") or "",
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": str(folder)},
                "claimRef": {"namespace": namespace, "name": name, "uid": claim["metadata"]["uid"]},
            },
        }
        if self._api.find(f"/api/v1/persistentvolumes/{volume['metadata']['name']}") is None:
            self._api.post("/api/v1/persistentvolumes", volume)

    def _attend(self, pod: Object) -> None:
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        if pod["metadata"].get("deletionTimestamp"):
            self._terminate(pod, path)
        elif pod["status"].get("phase") not in ("Succeeded", "Failed"):
            status = self._status(pod)
            shown = json.dumps([status["phase"], status.get("initContainerStatuses"), status["containerStatuses"]])
            if self._shown.get(pod["metadata"]["uid"]) != shown:
                self._api.patch(f"{path}/status", {"status": status}, "strategic")
                self._shown[pod["metadata"]["uid"]] = shown

    def _terminate(self, pod: Object, path: str) -> None:
        """Not ready at once; gone after the preStop hook's time, shortened to one second, so that a test sees both."""
        uid = pod["metadata"]["uid"]
        if uid not in self._leaving:
            self._leaving[uid] = time.monotonic()
            if pod["status"].get("phase") == "Running":
                status = {"conditions": _conditions(pod, initialized=True, ready=False)}
                self._api.patch(f"{path}/status", {"status": status}, "strategic")
        if pod["status"].get("phase") != "Running" or time.monotonic() - self._leaving[uid] > 1.0:
            self._api.delete(path, gracePeriodSeconds=0)

    def _status(self, pod: Object) -> Object:
        """The pod's status after one more look at its containers."""
        spec = pod["spec"]
        inits = spec.get("initContainers", [])
        init_statuses: list[Object] = []
        for container in inits:
            played = self._play(pod, container)
            init_statuses.append(_container_status(pod, container, played))
            if played.state is not State.DONE:
                failed = played.state is State.FAILED and spec.get("restartPolicy") == "Never"
                return {
                    "phase": "Failed" if failed else "Pending",
                    "initContainerStatuses": init_statuses,
                    "containerStatuses": [_waiting(c, "PodInitializing") for c in spec["containers"]],
                    "conditions": _conditions(pod, initialized=False, ready=False),
                }
        plays = [self._play(pod, container) for container in spec["containers"]]
        states = {play.state for play in plays}
        once = spec.get("restartPolicy") in ("Never", "OnFailure")
        phase = "Running"
        if State.FAILED in states and once:
            phase = "Failed"
        elif states == {State.DONE} and once:
            phase = "Succeeded"
        status = {
            "phase": phase,
            "containerStatuses": [_container_status(pod, c, p) for c, p in zip(spec["containers"], plays, strict=True)],
            "conditions": _conditions(pod, initialized=True, ready=states <= {State.SERVES, State.RUNS}),
            "podIP": pod["status"].get("podIP") or self._next_address(),
        }
        return status | ({"initContainerStatuses": init_statuses} if inits else {})

    def _next_address(self) -> str:
        self._address += 1
        return f"10.9.{self._address // 250}.{self._address % 250 + 1}"

    def _play(self, pod: Object, container: Object) -> Played:
        command = [*container.get("command", []), *container.get("args", [])]
        for beginning, player in _PLAYERS.items():
            if tuple(command[: len(beginning)]) == beginning:
                return player(self, pod, container, command[len(beginning) :])
        return Played(State.FAILED, f"the played kubelet does not know {command}")

    def _build(self, pod: Object, container: Object, arguments: Sequence[str]) -> Played:
        given = dict(argument.partition("=")[::2] for argument in arguments)
        folder = self._path(pod, container, given["out"], write=True)
        if not (folder / MANIFEST).exists():
            if not self.builds_may_end.is_set():
                return Played(State.RUNS)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST).write_text(json.dumps({"gpu": given["gpu"], "arguments": list(arguments)}))
        return Played(State.DONE)

    def _wait(self, pod: Object, container: Object, arguments: Sequence[str]) -> Played:
        folder, *options = arguments
        gpu = options[options.index("--gpu") + 1]
        manifest = self._path(pod, container, folder) / MANIFEST
        if not manifest.exists():
            return Played(State.RUNS)
        built_for = json.loads(manifest.read_text())["gpu"]
        if built_for != gpu:
            return Played(State.FAILED, f"the engine was built for {built_for}, not {gpu}")
        return Played(State.DONE)

    def _serve(self, pod: Object, container: Object, arguments: Sequence[str]) -> Played:
        folder = arguments[arguments.index("--engine") + 1]
        if not (self._path(pod, container, folder) / MANIFEST).exists():
            return Played(State.FAILED, f"no engine in {folder}")
        return Played(State.SERVES)

    def _ask(self, pod: Object, container: Object, arguments: Sequence[str]) -> Played:
        """A test pod: is there a ready pod behind the first NAME:PORT that it names?"""
        named = re.search(r"([a-z0-9][a-z0-9-]*)[a-z0-9.-]*:(\d+)", " ".join(arguments))
        if named is None:
            return Played(State.FAILED, "names no Service and port")
        found = self._api.find(f"/api/v1/namespaces/{pod['metadata']['namespace']}/endpoints/{named[1]}")
        ports = [
            port["port"]
            for subset in (found or {}).get("subsets", [])
            if subset.get("addresses")
            for port in subset.get("ports", [])
        ]
        return Played(State.DONE) if int(named[2]) in ports else Played(State.FAILED, f"{named[0]} does not answer")

    def _fetch(self, pod: Object, container: Object, arguments: Sequence[str]) -> Played:
        self._path(pod, container, arguments[arguments.index("--local-dir") + 1], write=True).mkdir(
            parents=True, exist_ok=True
        )
        return Played(State.DONE)

    def _path(self, pod: Object, container: Object, path: str, write: bool = False) -> Path:
        """Where a path of the container lies on this machine.

        Raises:
            AssertionError: when no claim is mounted there, or only for reading and ``write`` is asked for.
        """
        mounts = [
            m for m in container["volumeMounts"] if path == m["mountPath"] or path.startswith(m["mountPath"] + "/")
        ]
        assert mounts, f"{path} is on no volume of {container['name']}"
        mount = max(mounts, key=lambda m: len(m["mountPath"]))
        assert not (write and mount.get("readOnly")), f"{path} is mounted for reading only in {container['name']}"
        volume = next(v for v in pod["spec"]["volumes"] if v["name"] == mount["name"])
        folder = self.volume(pod["metadata"]["namespace"], volume["persistentVolumeClaim"]["claimName"])
        return folder / path[len(mount["mountPath"]) :].lstrip("/")


_PLAYERS: dict[tuple[str, ...], Callable[[Kubelet, Object, Object, Sequence[str]], Played]] = {
    ("diffgemma-engine", "build"): Kubelet._build,
    ("diffgemma-engine", "wait"): Kubelet._wait,
    ("diffgemma-serve",): Kubelet._serve,
    ("diffgemma",): Kubelet._ask,
    ("python3", "-c"): Kubelet._ask,
    ("hf", "download"): Kubelet._fetch,
}


def _container_status(pod: Object, container: Object, played: Played) -> Object:
    now = pod["metadata"]["creationTimestamp"]  # the same at every look
    if played.state in (State.RUNS, State.SERVES):
        state: Object = {"running": {"startedAt": now}}
    else:
        code = 0 if played.state is State.DONE else 1
        reason = "Completed" if code == 0 else "Error"
        state = {
            "terminated": {
                "exitCode": code,
                "reason": reason,
                "message": played.message,
                "startedAt": now,
                "finishedAt": now,
            }
        }
    ready = played.state in (State.SERVES, State.RUNS)
    return _shown(container, state, ready)


def _waiting(container: Object, reason: str) -> Object:
    return _shown(container, {"waiting": {"reason": reason}}, ready=False)


def _shown(container: Object, state: Object, ready: bool) -> Object:
    image = container["image"]
    return {
        "name": container["name"],
        "image": image,
        "imageID": image,
        "ready": ready,
        "restartCount": 0,
        "state": state,
    }


def _conditions(pod: Object, initialized: bool, ready: bool) -> list[Object]:
    states = {"Initialized": initialized, "Ready": ready, "ContainersReady": ready}
    now = timestamp()
    return [{"type": kind, "status": str(value), "lastTransitionTime": now} for kind, value in states.items()]
