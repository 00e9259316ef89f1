"""A sharded checkpoint becomes an engine in memory for the engine's weights and one shard; built, it takes far less.

Figures are megabytes beyond what a process holds that has imported everything.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_diffgemma.architecture import GLOBAL, SLIDING
from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.checkpoint_writer import write_checkpoint
from tests.support import GENERATION_CONFIG, random_tensors, small_architecture
from trtllm_build.pipeline import quantize
from trtllm_build.plan import make_plan

SHARD = 32 * 2**20
# Code that a first call maps, and what kernels keep for the next call.
SLACK = 32
ARCH = small_architecture(
    vocab_size=8000,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=12,
    num_attention_heads=8,
    head_dim=64,
    global_head_dim=128,
    num_experts=32,
    top_k_experts=8,
    moe_intermediate_size=256,
    layer_types=(SLIDING,) * 11 + (GLOBAL,),
)
LARGEST_TENSOR = 4 * 32 * 512 * 256 / 1e6

# A child process prints the figures that its work leaves in `figures`.
CHILD = """
import json, sys, threading
from pathlib import Path
import torch
from nemo_diffgemma.checkpoint import Checkpoint
from trtllm_build.backends.torch_cpu import TorchCpu
from trtllm_build.limits import Limits
from trtllm_build.spec import EngineSpec
from trtllm_build.pipeline import quantize
from trtllm_build.plan import make_plan

torch.set_num_threads(1)
checkpoint, work, precision = sys.argv[1:]
gpu = "h100" if precision == "fp8" else "cpu"
plan = make_plan([f"gpu={gpu}", f"checkpoint={checkpoint}", f"out={work}", f"precision={precision}"])
checkpoint, work = Checkpoint(plan.checkpoint), Path(work)

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(name + ":"))

before = {name: status(name) for name in ("VmRSS", "RssAnon")}
"""
# VmHWM is the most that was ever resident, files that are mapped included.
QUANTIZE = """
def peak():
    return status("VmHWM") - before["VmRSS"]

work.mkdir()
quantize(checkpoint, plan.recipe, work / "weights", print)
figures = {"peak": peak()}
everything = [t.clone() for _, t in checkpoint.tensors(checkpoint.text_shapes)]
figures["everything at once"] = peak()
"""
# Mapped weights are pages of their files: beside them there is what is anonymous, here the most of it.
LOAD = """
anonymous, ended = [0.0], threading.Event()

def sample():
    while not ended.wait(0.002):
        anonymous[0] = max(anonymous[0], status("RssAnon") - before["RssAnon"])

thread = threading.Thread(target=sample)
thread.start()
backend = TorchCpu.load(EngineSpec(work, Limits(64, 1, 8, 300, 1, None), {"pieces": "eager"}))
weights = backend.network.weights
tensors = [t for part in (weights, *weights.layers) for t in vars(part).values() if isinstance(t, torch.Tensor)]
total = sum(float(t.sum()) for t in tensors)  # every page is read
backend.logits(torch.arange(40), torch.arange(8), None)
figures = {"anonymous": anonymous[0], "weights": sum(t.nbytes for t in tensors) / 1e6}
figures["mappings"] = Path("/proc/self/maps").read_text().count(".safetensors\\n")
copies = [t.clone() for t in tensors]
ended.wait(0.05)
figures["copied"] = anonymous[0]
ended.set()
"""
REPORT = "print(json.dumps(figures))"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("sharded")
    tensors = random_tensors(ARCH, 0)
    yield write_checkpoint(folder / "checkpoint", ARCH, tensors, GENERATION_CONFIG, max_shard_bytes=SHARD)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> dict[str, float]:
    """Figures of an engine that is loaded from its bundle and has read all of its weights."""
    bundle = checkpoint.with_name("bundle")
    bundle.mkdir()
    plan = make_plan(["gpu=cpu", f"checkpoint={checkpoint}", f"out={bundle}"])
    quantize(Checkpoint(checkpoint), plan.recipe, bundle / "weights", lambda line: None)
    (bundle / "architecture.json").write_text(json.dumps(plan.arch.as_dict()))
    return measured(LOAD, checkpoint, bundle, "fp32")


def measured(work: str, checkpoint: Path, folder: Path, precision: str) -> dict[str, float]:
    """What a child process reports."""
    command = [sys.executable, "-c", CHILD + work + REPORT, str(checkpoint), str(folder), precision]
    # the allocator gives back at once what is freed: what it would keep is not held by our code
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print({name: round(figure, 1) for name, figure in figures.items()})
    return figures


def megabytes(folder: Path) -> list[float]:
    """Size of each weight file of a folder."""
    sizes = [p.stat().st_size / 1e6 for p in sorted(folder.glob("*.safetensors"))]
    print(f"{folder.name}: {len(sizes)} files, {sum(sizes):.0f} MB, the largest {max(sizes):.0f} MB")
    return sizes


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
def test_quantizing_holds_a_layer_and_not_the_model(precision: str, checkpoint: Path, tmp_path: Path) -> None:
    figures = measured(QUANTIZE, checkpoint, tmp_path / "bundle", precision)
    shards, files = megabytes(checkpoint), megabytes(tmp_path / "bundle" / "weights")
    assert len(shards) > 10
    assert figures["peak"] <= sum(files) + max(shards) + SLACK
    # far below that: a layer, and a tensor with what looking for NaN in it takes
    assert figures["peak"] <= max(files) + 2 * LARGEST_TENSOR + SLACK
    assert figures["everything at once"] > sum(shards)  # the measurement sees what it should


@pytest.mark.slow
def test_a_loaded_engine_holds_its_weights_once_as_mapped_files(loaded: dict[str, float], checkpoint: Path) -> None:
    shards = megabytes(checkpoint)
    assert loaded["anonymous"] <= max(shards)
    assert loaded["copied"] > 0.9 * loaded["weights"]  # the measurement sees what it should


@pytest.mark.slow
def test_a_loaded_engine_maps_each_weight_file_once(loaded: dict[str, float]) -> None:
    assert loaded["mappings"] == 1 + ARCH.num_hidden_layers
