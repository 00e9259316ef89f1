"""Peak memory of an fp8 build of a checkpoint far larger than what the build may hold: 3 layers of released shapes.

6.4 GB in bfloat16, in shards of 1 GiB; its largest tensor is the embedding with 1.48 GB. The build is the command a
user types, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.common import OUT, console, run, show
from nemo_diffgemma.architecture import GLOBAL, SLIDING, Architecture
from nemo_diffgemma.checkpoint import text_tensors
from nemo_diffgemma.files import write_json
from nemo_diffgemma.hf_config import write_config
from nemo_diffgemma.models import RELEASED, configured
from nemo_diffgemma.weight_files import INDEX
from trtllm_build.quantization.shards import ShardEntry, write_shards

LAYERS = (SLIDING, SLIDING, GLOBAL)
SHARD = 2**30

# VmHWM counts mapped pages of files too; RssAnon is what is held beside them
CHILD = """
import json, sys, threading
from pathlib import Path

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))

from trtllm_build.pipeline import build
from trtllm_build.plan import make_plan
imported, anonymous, ended = status("VmRSS"), [0], threading.Event()

def sample():
    while not ended.wait(0.01):
        anonymous[0] = max(anonymous[0], status("RssAnon"))

thread = threading.Thread(target=sample)
thread.start()
build(make_plan(sys.argv[1:]), lambda line: print(line, file=sys.stderr))
ended.set()
thread.join()
print(json.dumps({"imports": imported, "peak": status("VmHWM"), "peak_anonymous": anonymous[0]}))
"""


def main() -> None:
    """ShardEntry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the 6 GB checkpoint for another run")
    given = parser.parse_args()
    directory, out = OUT / "6gb" / "checkpoint", OUT / "6gb" / "h100-fp8"
    arch = configured(RELEASED).with_changes(num_hidden_layers=len(LAYERS), layer_types=LAYERS)
    if not (directory / INDEX).is_file():
        console.print(f"writing {directory}", style="dim")
        write(directory, arch)
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    command = [sys.executable, "-c", CHILD, "gpu=h100", f"checkpoint={directory}", f"out={out}"]
    figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    seconds = time.perf_counter() - start
    largest = max(2 * torch.Size(s).numel() for s in text_tensors(arch).values())
    size = sum(p.stat().st_size for p in directory.glob("*.safetensors"))
    row = {
        "what": "fp8 build",
        "checkpoint_gb": size / 1e9,
        "largest_tensor_gb": largest / 1e9,
        "imports_gb": figures["imports"] / 1e9,
        "peak_gb": figures["peak"] / 1e9,
        "peak_over_largest_tensor_gb": (figures["peak"] - largest) / 1e9,
        "peak_anonymous_gb": figures["peak_anonymous"] / 1e9,
        "seconds": seconds,
    }
    show("quantize_memory", "resident memory of the build, mapped files included", [row])
    if not given.keep:
        shutil.rmtree(OUT / "6gb")


def write(directory: Path, arch: Architecture) -> None:
    """Random weights, one tensor in memory at a time."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    shapes = text_tensors(arch)
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(2**22, generator=g).bfloat16()

    def tensor(shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        count = torch.Size(shape).numel()
        whole: torch.Tensor = noise.repeat(-(-count // len(noise)))[:count].view(shape)
        return whole.mul_(float(shape[-1]) ** -0.5)

    entries = [ShardEntry(name, "BF16", shape) for name, shape in shapes.items()]
    write_shards(directory, entries, ((n, tensor(s)) for n, s in shapes.items()), SHARD, lambda _: None)
    write_json(directory / "config.json", write_config(arch, "bfloat16"))


if __name__ == "__main__":
    run(main)
