"""One real tritonserver a test session, and the same engine in this process to compare with."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
import torch
import trustme

from tests.serving.gateway import Running, running
from triton_repo.client.blocking import BlockingClient
from triton_repo.launcher.server import Server
from trtllm_build import Engine, load_engine
from trtllm_build.pipeline import build
from trtllm_build.plan import make_plan


@pytest.fixture(scope="session", autouse=True)
def same_threads() -> Iterator[None]:
    """A served engine sums in as many threads as one in this process: another number rounds otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
        yield


@pytest.fixture(scope="session")
def server(demo_bundle: Path, same_threads: None) -> Iterator[Server]:
    with Server(demo_bundle, http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


@pytest.fixture(scope="session")
def narrow_server(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One request runs, one waits."""
    limits = ["gpu.limits.slots=1", "gpu.limits.queue=1"]
    out = tmp_path_factory.mktemp("narrow") / "cpu"
    build(make_plan(["compile=false", f"checkpoint={text_checkpoint}", f"out={out}", *limits]), lambda line: None)
    with Server(out, http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


@pytest.fixture(scope="session")
def wide_server(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With room for a schema, or tools, in the prompt."""
    checkpoint, out = (tmp_path_factory.mktemp("wide") / name for name in ("checkpoint", "cpu"))
    shutil.copytree(text_checkpoint, checkpoint)
    config = checkpoint / "config.json"
    config.write_text(
        re.sub(r'("max_position_embeddings"): \d+', r"\1: 4096", config.read_text(encoding="utf-8")), encoding="utf-8"
    )
    limits = ["gpu.limits.slots=4", "gpu.limits.context=4096"]
    build(make_plan(["compile=false", f"checkpoint={checkpoint}", f"out={out}", *limits]), lambda line: None)
    with Server(out, http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


@pytest.fixture(scope="session")
def wide_gateway(wide_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """OpenAI's API in front of ``wide_server``."""
    with running(wide_server.grpc_url, tmp_path_factory.mktemp("wide_gateway") / "log") as found:
        yield found


@pytest.fixture
def wide_client(wide_server: Server) -> Iterator[BlockingClient]:
    with BlockingClient(wide_server.grpc_url) as connected:
        yield connected


@pytest.fixture
def wide_api(wide_gateway: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{wide_gateway.url}/v1", api_key="none", max_retries=0) as connected:
        yield connected


@pytest.fixture(scope="session")
def gateway(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """OpenAI's API in front of ``server``."""
    with running(server.grpc_url, tmp_path_factory.mktemp("gateway") / "log") as found:
        yield found


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    """An authority, and a folder with its ``ca.pem`` and a client's ``cert.pem`` and ``key.pem``."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    own = authority.issue_cert("client@localhost")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    own.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    own.private_key_pem.write_to_path(str(folder / "key.pem"))
    return authority, folder


@pytest.fixture(scope="session")
def engine(demo_bundle: Path) -> Iterator[Engine]:
    loaded = load_engine(demo_bundle)
    yield loaded
    loaded.close()


@pytest.fixture
def client(server: Server) -> Iterator[BlockingClient]:
    with BlockingClient(server.grpc_url) as connected:
        yield connected


@pytest.fixture
def logged(server: Server) -> Callable[[str], bool]:
    """Wait until the server's log says something."""

    def wait(line: str) -> bool:
        deadline = time.monotonic() + 30
        while line not in server.log_path.read_text():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    return wait
