"""Fixtures that cross packages: a checkpoint with a tokenizer, and the engine built from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling, Scheduling

from nemo_diffgemma.quiet import quiet_start

quiet_start()
os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; has to be said before any is defined

from nemo_diffgemma.files import locked  # noqa: E402
from tests.support import text_checkpoint  # noqa: E402
from trtllm_build.pipeline import build  # noqa: E402
from trtllm_build.plan import make_plan  # noqa: E402

# tiny tensors: a second thread only waits for the first, and other processes of a test run need the core
torch.set_num_threads(1)


class _Sharing(LoadScopeScheduling):
    """How `make test` shares tests out over its processes: all with servers to one, each other file to any."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "servers" if _serves(file) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return _Sharing(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those with servers take longest, and begin; last comes what needs an engine, which is then there."""
    engines = {item.nodeid.partition("::")[0] for item in items if "demo_bundle" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: (not _serves(item.nodeid), item.nodeid.partition("::")[0] in engines))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What only computes gives way to servers, whose tests tell time."""
    if "PYTEST_XDIST_WORKER" in os.environ and not _serves(item.nodeid):
        os.setpriority(os.PRIO_PROCESS, 0, 10)


def _serves(nodeid: str) -> bool:
    return nodeid.startswith(("tests/serving/", "tests/helm/test_commands.py"))


def once(temporary: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that one of the processes of a test run makes, for all of them: look, do not change.

    Args:
        temporary: pytest's.
        name: of the folder.
        make: is called with its path, where nothing is yet.
    """
    own = temporary.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "once" / name
    with locked(shared / "lock", lambda: None, lambda: None):
        if not (shared / "made").exists():
            shutil.rmtree(shared / name, ignore_errors=True)  # of a process that failed halfway
            make(shared / name)
            (shared / "made").touch()
    return shared / name


@pytest.fixture(scope="session", name="text_checkpoint")
def _text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with a tokenizer and a chat template."""
    return once(tmp_path_factory, "text_checkpoint", text_checkpoint) / "model"


@pytest.fixture(scope="session")
def exported_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `diffgemma-train` writes: the demo model after a few steps, tokenizer and all."""

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "nemo_diffgemma.training"]
        command += [
            f"run={folder.with_name('run')}",
            f"output={folder}",
            "optim.steps=12",
            "data.generate.examples=3000",
            "data.generate.held_out=40",
            "parallel.accelerator=cpu",
            "output_conversations=true",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    return once(tmp_path_factory, "exported_checkpoint", make)


@pytest.fixture(scope="session")
def demo_bundle(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU engine built from :func:`text_checkpoint`. To compile its pieces takes minutes of one core."""

    def make(folder: Path) -> None:
        build(make_plan(["gpu=cpu", f"checkpoint={text_checkpoint}", f"out={folder}"]), lambda line: None)

    return once(tmp_path_factory, "demo_bundle", make)
