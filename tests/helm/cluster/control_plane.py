"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler on loopback, as a context manager."""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from nemo_diffgemma.errors import FieldError
from tests.helm.cluster.api import Api, ApiError

ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"
BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
HOST = "127.0.0.1"
_START_S = 90.0
_STOP_S = 20.0
# from here on the plain HTTP ports are gone, and so are the flags that turn them off
_NO_PLAIN_PORT = (1, 24)


def assets() -> Path:
    """The folder with the control plane's binaries that ``KUBEBUILDER_ASSETS`` names.

    Raises:
        FieldError: when it is not set or lacks one of :data:`BINARIES`.
    """
    folder = os.environ.get(ASSETS_VARIABLE) or None
    missing = [name for name in BINARIES if not folder or not os.access(Path(folder) / name, os.X_OK)]
    if folder is None or missing:
        raise FieldError(
            field=ASSETS_VARIABLE,
            value=folder,
            allowed=f"a folder with {', '.join(BINARIES)}" + (f" (missing: {', '.join(missing)})" if folder else ""),
            fix="make control-plane builds them (ten minutes, once); or set KUBECONFIG to an empty cluster",
        )
    return Path(folder).resolve()


class ControlPlane:
    """A control plane without nodes. Every process is ended by its id on the way out.

    Args:
        binaries: folder with :data:`BINARIES`.
        directory: an empty folder for data, logs and the kubeconfig.

    Raises:
        RuntimeError: with the end of its log, when a process ends or the API server is not ready in time.
    """

    def __init__(self, binaries: Path, directory: Path):
        self._binaries = binaries
        self._directory = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.kubeconfig = directory / "kubeconfig"

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self.close)
            self._start()
            undo.pop_all()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what was started, the last first: the API server writes to etcd until it ends."""
        for process in reversed(list(self._processes.values())):
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def check(self) -> None:
        """Raise RuntimeError when one of the processes has ended."""
        for name, process in self._processes.items():
            if (status := process.poll()) is not None:
                log = (self._directory / f"{name}.log").read_text(errors="replace").splitlines()
                raise RuntimeError("\n".join([f"{name} ended with status {status}; the end of its log:", *log[-15:]]))

    def _start(self) -> None:
        client, peer, api, controllers, scheduler = free_ports(5)
        certificates = self._directory / "certificates"
        certificates.mkdir(parents=True)
        token = secrets.token_hex(16)
        (self._directory / "tokens.csv").write_text(f"{token},admin,1,system:masters\n")
        key = self._directory / "service-accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        plain = _version(self._binaries / "kube-apiserver") < _NO_PLAIN_PORT
        store = f"http://{HOST}:{client}"
        self._run(
            "etcd",
            data_dir=self._directory / "etcd",
            listen_client_urls=store,
            advertise_client_urls=store,
            listen_peer_urls=f"http://{HOST}:{peer}",
            initial_advertise_peer_urls=f"http://{HOST}:{peer}",
            initial_cluster=f"default=http://{HOST}:{peer}",
        )
        self._run(
            "kube-apiserver",
            etcd_servers=store,
            bind_address=HOST,
            advertise_address=HOST,
            secure_port=api,
            cert_dir=certificates,
            token_auth_file=self._directory / "tokens.csv",
            authorization_mode="RBAC",
            service_cluster_ip_range="10.0.0.0/24",
            service_account_key_file=key,
            service_account_signing_key_file=key,
            service_account_issuer="https://kubernetes.default.svc",
            enable_admission_plugins="NamespaceLifecycle,LimitRanger,ServiceAccount,ResourceQuota,Priority",
        )
        self._write_kubeconfig(f"https://{HOST}:{api}", certificates / "apiserver.crt", token)
        self._wait_until_ready()
        common: dict[str, object] = {
            "kubeconfig": self.kubeconfig,
            "authentication_kubeconfig": self.kubeconfig,
            "authorization_kubeconfig": self.kubeconfig,
            "bind_address": HOST,
            "leader_elect": "false",
        } | ({"port": 0} if plain else {})
        self._run(
            "kube-controller-manager",
            **common,
            secure_port=controllers,
            cert_dir=certificates,
            service_account_private_key_file=key,
            use_service_account_credentials="false",
            # there is no network to give addresses of
            controllers="*,-nodeipam,-bootstrapsigner,-tokencleaner",
        )
        self._run("kube-scheduler", **common, secure_port=scheduler, cert_dir=certificates)
        time.sleep(1)
        self.check()

    def _run(self, name: str, **options: object) -> None:
        arguments = [f"--{option.replace('_', '-')}={value}" for option, value in options.items()]
        # whatever becomes of this process, none of them stays behind
        command = ["setpriv", "--pdeathsig=TERM", str(self._binaries / name), *arguments]
        with (self._directory / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                command, cwd=self._directory, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def _write_kubeconfig(self, server: str, authority: Path, token: str) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": str(authority)}}],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))
        self.kubeconfig.chmod(0o600)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            self.check()
            try:
                Api(self.kubeconfig).get("/api/v1/namespaces/default/serviceaccounts")
                return
            except (ApiError, OSError) as error:  # requests' errors are OSErrors
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the API server was not ready within {_START_S:.0f} s: {error}") from error
            time.sleep(0.3)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nothing listens on; held together, so that no two are the same."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _version(binary: Path) -> tuple[int, int]:
    printed = subprocess.run([binary, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"v(\d+)\.(\d+)", printed)
    assert found is not None, f"{binary} --version printed {printed!r}"
    return int(found[1]), int(found[2])
