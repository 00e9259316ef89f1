"""Become a container: what a container runtime does between "create" and the first instruction of the image's command.

Runs as root of a mount and a process namespace of its own (``unshare``), reads what to become from the JSON file
that is its argument, and ends as that command. Only the standard library: it runs before the container's Python does.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# what this machine gives to the image: its system files; everything else comes from the specification
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc")
_MNT_DETACH = 2
_DEVICES = ("null", "zero", "full", "random", "urandom")


def main(specification: Path) -> None:
    """Build the root file system, enter it, drop every privilege, run the command.

    The specification: ``root`` (an empty folder), ``mounts`` (``source``, ``target``, ``read_only``; in order),
    ``read_only_root``, ``user``, ``group``, ``groups``, ``mapped`` (no real root at hand: the user is mapped in a user
    namespace), ``command``, ``environment``, ``directory``, ``hosts`` (a file for /etc/hosts).
    """
    given: dict[str, Any] = json.loads(specification.read_text())
    root = Path(given["root"])
    _mount("-t", "tmpfs", "-o", "mode=755", "container", root)
    read_only = [_system(root, name) for name in _SYSTEM]
    _bind(Path(given["hosts"]), root / "etc/hosts")
    _devices(root)
    (root / "proc").mkdir()
    _mount("-t", "proc", "proc", root / "proc")
    for mount in given["mounts"]:
        target = root / mount["target"].lstrip("/")
        _bind(Path(mount["source"]), target)
        if mount["read_only"]:
            read_only.append(target)
    (root / "tmp").mkdir(exist_ok=True)  # in an image it is there; what the root allows is decided below
    if not given["read_only_root"]:
        (root / "tmp").chmod(0o1777)
    for target in filter(None, read_only):
        _mount("-o", "remount,bind,ro", target)
    if given["read_only_root"]:
        _mount("-o", "remount,bind,ro", root)
    _enter(root)
    os.chdir(given["directory"])
    environment: dict[str, str] = given["environment"]
    command: list[str] = _as_user(given) + given["command"]
    os.execvpe(command[0], command, environment)


def _enter(root: Path) -> None:
    """Make ``root`` the root; what was above it is gone. (After a mere chroot no user namespace can be made.)"""
    os.chdir(root)
    _run("pivot_root", ".", ".")
    # the old root now lies over the new one
    if ctypes.CDLL(None, use_errno=True).umount2(b".", _MNT_DETACH) != 0:
        raise SystemExit(f"umount of the old root: {os.strerror(ctypes.get_errno())}")


def _as_user(given: dict[str, Any]) -> list[str]:
    user, group = given["user"], given["group"]
    unprivileged = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    if given["mapped"]:
        return [
            "unshare",
            "--user",
            f"--map-user={user}",
            f"--map-group={group}",
            "--",
            "setpriv",
            "--no-new-privs",
            "--",
        ]
    groups = ",".join(str(g) for g in given["groups"])
    return [
        *unprivileged,
        f"--reuid={user}",
        f"--regid={group}",
        f"--groups={groups}" if groups else "--clear-groups",
        "--",
    ]


def _system(root: Path, name: str) -> Path | None:
    """Show ``/name`` of this machine in the container; a link stays a link. Returns what is to be made read-only."""
    source, target = Path("/", name), root / name
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return None
    if not source.is_dir():
        return None
    _bind(source, target)
    return target


def _devices(root: Path) -> None:
    for name in _DEVICES:
        _bind(Path("/dev", name), root / "dev" / name)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        (root / "dev" / name).symlink_to(f"/proc/self/fd{target}")
    (root / "dev/shm").mkdir()
    # what a container runtime gives: 64 MB
    _mount("-t", "tmpfs", "-o", "mode=1777,size=64m", "shm", root / "dev/shm")


def _bind(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount("--bind", source, target)


def _mount(*arguments: str | Path) -> None:
    _run("mount", *map(str, arguments))


def _run(*command: str) -> None:
    # where users other than root do not look
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
