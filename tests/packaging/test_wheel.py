"""What `pip install diffgemma` brings without an extra: the client, small and quick to start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_BYTES = 60e6
# without a path that leads to this checkout
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
HEAVY = ("torch", "transformers", "numpy", "tritonclient", "hydra", "nemo")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as `python -m build` does."""
    out, source = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in tracked.stdout.split("\0")[:-1]:  # setuptools writes into what it builds from
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, env=CLEAN)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def client(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing but the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("client")
    venv.create(folder, with_pip=False)
    install = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--quiet", "--no-compile", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, cwd=folder, env=CLEAN)
    return folder


def test_the_wheel_holds_every_package_and_what_they_read(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    for package in ("nemo_diffgemma", "trtllm_build", "triton_repo"):
        tracked = subprocess.run(["git", "ls-files", package], cwd=ROOT, capture_output=True, text=True, check=True)
        assert set(tracked.stdout.split()) <= held
    assert not any(name.startswith(("tests/", "benchmarks/", "helm/")) for name in held)


@pytest.mark.slow
def test_the_client_is_small(client: Path) -> None:
    (packages,) = client.glob("lib/python*/site-packages")
    assert sum(path.stat().st_size for path in packages.rglob("*") if path.is_file()) < MOST_BYTES
    assert not [name for name in HEAVY if (packages / name).exists()]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["diffgemma", "--help"], ["diffgemma", "bench", "--help"]])
def test_the_client_s_commands_start(client: Path, arguments: list[str]) -> None:
    command = [str(client / "bin" / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=CLEAN)
    assert done.stdout.startswith("usage: diffgemma")


@pytest.mark.slow
def test_a_generation_without_a_server_is_one_line(client: Path) -> None:
    command = [str(client / "bin" / "diffgemma"), "hello", "--url=127.0.0.1:1", "--retries=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=CLEAN)
    assert done.returncode == 2
    assert done.stderr.startswith("error: url: '127.0.0.1:1' cannot be used")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "extra"), [("diffgemma-engine", "engine"), ("diffgemma-train", "train"), ("diffgemma-serve", "serve")]
)
def test_a_command_of_another_extra_says_which(client: Path, name: str, extra: str) -> None:
    command = [str(client / "bin" / name), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=CLEAN)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.endswith(f"-m pip install 'diffgemma[{extra}]'\n")


@pytest.mark.slow
def test_the_client_is_imported_from_its_package(client: Path) -> None:
    """In a process that has not imported a part of it before."""
    code = "from triton_repo.client import *; import triton_repo.client as c; print(Client.__name__, hasattr(c, 'x'))"
    command = [str(client / "bin" / "python"), "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=CLEAN)
    assert done.stdout == "Client False\n"
