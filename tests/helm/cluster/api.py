"""The Kubernetes API over HTTPS: what the tests need of it, on `requests`."""

from __future__ import annotations

import base64
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
import yaml

Object = dict[str, Any]

_PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}


class ApiError(RuntimeError):
    """The API server said no.

    Args:
        status: HTTP status.
        message: the server's own words.
    """

    def __init__(self, status: int, message: str):
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Api:
    """A connection to the cluster that a kubeconfig's current context names.

    Raises:
        ValueError: for a kubeconfig that signs in by something else than a token or a client certificate.
    """

    def __init__(self, kubeconfig: Path):
        self.kubeconfig = kubeconfig
        config = yaml.safe_load(kubeconfig.read_text())
        context = _named(config["contexts"], config["current-context"], "context")
        cluster = _named(config["clusters"], context["cluster"], "cluster")
        user = _named(config["users"], context["user"], "user")
        self.server: str = cluster["server"].rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy of the environment knows nothing of loopback
        authority = _file(cluster, "certificate-authority", kubeconfig.parent)
        self._session.verify = authority or not cluster.get("insecure-skip-tls-verify", False)
        if token := user.get("token"):
            self._session.headers["Authorization"] = f"Bearer {token}"
        elif certificate := _file(user, "client-certificate", kubeconfig.parent):
            key = _file(user, "client-key", kubeconfig.parent)
            assert key is not None, "a client certificate without its key"
            self._session.cert = (certificate, key)
        else:
            raise ValueError(f"{kubeconfig}: only a token or a client certificate is understood")

    def get(self, path: str) -> Object:
        """The object or list at ``path``. Raises :class:`ApiError`."""
        return self._call("GET", path)

    def find(self, path: str) -> Object | None:
        """The object at ``path``; None when there is none."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def items(self, path: str) -> list[Object]:
        """The objects of the list at ``path``."""
        found: list[Object] = self.get(path)["items"]
        return found

    def post(self, path: str, body: Object) -> Object:
        """Create ``body`` in the collection at ``path``. Raises :class:`ApiError`."""
        return self._call("POST", path, body)

    def patch(self, path: str, body: Object, kind: str = "merge") -> Object:
        """Apply a ``merge`` or ``strategic`` patch. Raises :class:`ApiError`."""
        return self._call("PATCH", path, body, _PATCH_TYPES[kind])

    def delete(self, path: str, **options: object) -> None:
        """Delete the object at ``path``; one that is gone already is fine."""
        try:
            self._call("DELETE", path, dict(options))
        except ApiError as error:
            if error.status != 404:
                raise

    def version(self) -> tuple[int, int]:
        """Major and minor version of the server."""
        found = self.get("/version")
        return int(found["major"]), int(found["minor"].rstrip("+"))

    def _call(self, method: str, path: str, body: Object | None = None, kind: str = "application/json") -> Object:
        answer = self._session.request(
            method, self.server + path, json=body, headers={"Content-Type": kind}, timeout=30
        )
        if not answer.ok:
            try:
                message = answer.json()["message"]
            except (ValueError, KeyError):
                message = answer.text[:500]
            raise ApiError(answer.status_code, message)
        found: Object = answer.json()
        return found


def wait_for(what: str, found: Callable[[], Any], seconds: float = 60.0, describe: Callable[[], str] = str) -> Any:
    """Call ``found`` until it gives something true, and return that.

    Raises:
        AssertionError: naming ``what`` and what ``describe`` says, when it does not within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}; {describe()}"
        time.sleep(0.2)
    return value


def _named(entries: list[Object], name: str, kind: str) -> Object:
    found: Object = next(entry[kind] for entry in entries if entry["name"] == name)
    return found


def _file(section: Object, key: str, folder: Path) -> str | None:
    """Path of what ``key`` names, or of a file that holds what ``key-data`` carries."""
    if data := section.get(f"{key}-data"):
        with tempfile.NamedTemporaryFile(delete=False) as file:
            file.write(base64.b64decode(data))
        return file.name
    return str(folder / section[key]) if key in section else None
