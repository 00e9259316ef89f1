"""Serving changes nothing in the environment that it is run from: others use it too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from triton_repo.launcher.tritonserver import Installation

PORTS = ["--grpc-port=0", "--http-port=0", "--metrics-port=0", "--health-port=0"]


def snapshot(*folders: Path) -> dict[str, tuple[int, ...]]:
    """Mode, size, time of the last change and owner of every file and folder."""
    paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    found = {str(path): path.lstat() for path in paths}
    return {path: (s.st_mode, s.st_size, s.st_mtime_ns, s.st_uid, s.st_gid) for path, s in found.items()}


@pytest.mark.server
@pytest.mark.slow
def test_a_server_leaves_the_environment_as_it_was(demo_bundle: Path, tmp_path: Path) -> None:
    installation = Installation.find()
    root = installation.binary.parent.parent
    before = snapshot(root)
    assert len(before) > 10
    for path in (installation.binary, installation.stub):
        assert path is not None
        assert before[str(path)][0] & 0o555 == 0o555, f"{path}: others cannot run it"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [
        sys.executable,
        "-m",
        "triton_repo.launcher.serve",
        "--engine",
        str(demo_bundle),
        *PORTS,
        "--openai-port=0",
    ]
    process = subprocess.Popen(
        [*command, f"--log-file={tmp_path / 'log'}"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"TMPDIR": str(tmp_path)},
    )
    with process:
        assert process.stdout is not None
        while not (line := process.stdout.readline()).startswith("try: "):
            assert line, (tmp_path / "log").read_text()
        (scratch,) = tmp_path.glob("diffgemma-serve-*")
        stub = scratch / "backends" / "python" / "triton_python_backend_stub"
        assert not stub.is_symlink()
        assert snapshot(root) == before
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert snapshot(root) == before
    assert not list(tmp_path.glob("*diffgemma-serve-*"))


def test_a_backend_that_this_user_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything: asked as another user."""
    source = tmp_path / "backends" / "python"
    source.mkdir(parents=True)
    stub = source / "triton_python_backend_stub"
    stub.write_bytes(b"\x7fELF")
    stub.chmod(0o100)
    tmp_path.chmod(0o755)
    script = (
        "import sys; from pathlib import Path; from triton_repo.launcher.tritonserver import Installation\n"
        "Installation(Path(sys.argv[1]), Path(sys.argv[1]), None, None, None).backend_directory(Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "backends"), str(tmp_path / "copy")]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"python backend: '{stub}' cannot be used; allowed: a file that this user may read" in done.stderr
    assert f"fix: chmod -R a+rX {source} {stub}" in done.stderr
    assert not (tmp_path / "copy").exists()
