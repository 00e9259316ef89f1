"""NVIDIA TensorRT Edge-LLM: its exporter run here, its engine built on the device.

The exporter wants other versions of transformers and onnx than this project and lives in an environment of its own
(``make setup-edge-llm``). It runs on a CPU. The engine is built and run by NVIDIA's programs on a DGX Spark, with the
commands that the manifest holds; nothing of it is executed here, and this project's runtime does not load the bundle.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import deque
from pathlib import Path
from typing import Any

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.hf_config import load_architecture
from trtllm_build.compilers import Note, Outcome
from trtllm_build.compilers.edge_llm.contract import EXPORTER, check_graph
from trtllm_build.compilers.edge_llm.layout import quantization, write_layout
from trtllm_build.plan import Plan

PYTHON = Path(__file__).parents[3] / ".venv-edge-llm" / "bin" / "python"
TENSORRT = "10.16.1.11"  # that the exporter's release was qualified with on DGX Spark (its _native/dependencies.py)
CUDA = "13.0"
FOLDER, ENGINE = "edge_llm", "edge_llm_engine"  # in the bundle: exported here; built there
_GRAPH = Path(__file__).with_name("graph.py")
# What an engine for one user at a time admits; keys and values take 225 kB per token at the released sizes (float16).
MAX_BATCH, MAX_INPUT, MAX_CACHE = 1, 4096, 8192
_SETUP = "run `make setup-edge-llm`"
_PACKAGES = ("tensorrt-edgellm", "torch", "transformers", "onnx", "onnxscript")
_TARGET = {"EDGELLM_NVFP4_MOE_TARGET": "sm121"}  # order of expert rows; without it they are laid out for SM 110
_TAIL = 12  # lines of the exporter that an error shows
# What the exporter prints when a stage is done -> what is told of it.
_STAGES = (
    (re.compile(r"Loaded (\d+) tensors, skipped (\d+)"), "read {0} tensors, passed over {1}"),
    (re.compile(r"Obtain model graph.*✅"), "traced"),
    (re.compile(r"Translate the graph into ONNX.*✅"), "translated to ONNX"),
    (re.compile(r"Optimize the ONNX graph.*✅"), "optimised"),
    (re.compile(r"Externalized (\d+) NVFP4"), "{0} tensors of packed experts written beside the graph"),
    (re.compile(r"Export complete: "), "written"),
)


def compile_engine(plan: Plan, checkpoint: Checkpoint | None, work: Path, note: Note) -> Outcome:
    """See :class:`trtllm_build.compilers.Compiler`."""
    assert plan.sm is not None
    assert checkpoint is not None, "random weights are for the cuda backend"
    unified = work / "unified"  # the quantised checkpoint, where the plan quantises
    written = plan.recipe.format is None or unified.is_dir()
    require(
        written,
        field="unified",
        value=plan.unified,
        allowed="true: the exporter reads that directory",
        fix="leave unified=false out",
    )
    result = export(unified if unified.is_dir() else checkpoint.directory, work / FOLDER, PYTHON, note)
    device = device_commands(plan.arch)
    note(f"compile  what remains, in the bundle's directory on the {plan.gpu}, TensorRT {TENSORRT}, CUDA {CUDA}:")
    for command in device:
        note(f"compile    {command}")
    hardware = {"kind": "cuda", "name": plan.gpu.upper(), "sm": plan.sm, "tensorrt": TENSORRT, "cuda": CUDA}
    ports = {kind: result["graph"].pop(kind) for kind in ("inputs", "outputs")}
    return Outcome(hardware, {}, "none", {"edge_llm": result, "parity": None}, device, io=ports)


def export(checkpoint: Path, out: Path, python: Path, note: Note) -> dict[str, Any]:
    """Run NVIDIA's exporter on a checkpoint and check what it wrote.

    Args:
        checkpoint: unquantised (it becomes float16), or an nvfp4 directory with ``hf_quant_config.json``.
        out: directory to write; replaced when it exists.
        python: of the exporter's environment.
        note: called with a line for every stage.

    Returns:
        JSON-ready: the exporter's versions, the graph's opset, operators, inputs and outputs, how many tensors of the
        checkpoint were found in it, and the size of every file.

    Raises:
        FieldError: when the environment or a file of the checkpoint is missing, the checkpoint is quantised in another
            way, the exporter fails, or its graph is not valid, not the contract's, or lacks a weight.
    """
    versions = _versions(python)
    arch = load_architecture(checkpoint)
    nvfp4 = quantization(checkpoint) is not None
    matrices = 3 * arch.num_experts * arch.num_hidden_layers
    if not nvfp4:
        note(f"export   not quantised: experts become {matrices:,} products in float16; for large models use nvfp4")
    shutil.rmtree(out, ignore_errors=True)
    layout, written = out / "layout", out / "written"
    layout.mkdir(parents=True)
    write_layout(checkpoint, layout, lambda line: note(f"export   {line}"))
    command = [str(python), "-m", "tensorrt_edgellm.scripts.export", str(layout), str(written), "--skip-visual"]
    _run_exporter(command, note)
    graph = written / "dllm"
    require(
        (graph / "model.onnx").is_file(),
        field="edge_llm:export",
        value=str(graph),
        allowed="a model.onnx",
        fix="report it with the build log",
    )
    found = _look_into(python, graph, checkpoint)
    check_graph(found, arch, nvfp4)
    weights = found["weights"]
    wrong = weights["wrong"]
    require(
        not wrong,
        field="edge_llm:weights",
        value=f"{len(wrong)} of {weights['compared']} tensors not in the graph: {', '.join(wrong[:3])}",
        allowed="every text tensor of the checkpoint, but for float16's rounding",
        fix=f"report it: {EXPORTER} of the exporter read this checkpoint differently",
    )
    for path in graph.iterdir():
        path.rename(out / path.name)
    shutil.rmtree(layout)
    shutil.rmtree(written)
    files = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    sizes = f"{len(found['inputs'])} inputs and {len(found['outputs'])} outputs as documented"
    note(
        f"export   {found['nodes']} nodes, {sizes}; "
        f"all {weights['compared']} tensors of the checkpoint found in it; {sum(files.values()) / 1e6:.1f} MB"
    )
    kept = {key: found[key] for key in ("opset", "plugins", "nodes", "inputs", "outputs")}
    precision = "nvfp4 experts, float16" if nvfp4 else "float16"
    return {
        "exporter": versions,
        "precision": precision,
        "graph": kept,
        "tensors_compared": weights["compared"],
        "files": files,
    }


def device_commands(arch: Architecture) -> list[str]:
    """What to run on a DGX Spark, in order, in the bundle's directory there.

    From NVIDIA's installation and engine builder guides of the exporter's release: the C++ programs are built there
    from source (the wheel carries libraries, and a builder of its own that reads checkpoints instead of ONNX).

    Args:
        arch: bounds the engine's context.
    """
    longest = arch.max_position_embeddings
    cache, prompt = min(MAX_CACHE, longest), min(MAX_INPUT, longest - arch.canvas_length)
    source = "$HOME/TensorRT-Edge-LLM"
    run = f"EDGELLM_PLUGIN_PATH={source}/build/libNvInfer_edgellm_plugin.so {source}/build/examples/llm"
    return [
        f"git clone --branch v{EXPORTER} --recursive https://github.com/NVIDIA/TensorRT-Edge-LLM.git {source}",
        "python3 -m pip install nvidia-cutlass-dsl==4.7.0",
        f"(cd {source} && python3 kernelSrcs/build_cutedsl.py --kernels ALL --gpu_arch sm_121 --arch aarch64 "
        f"--cuda-version {CUDA.partition('.')[0]})",
        f"cmake -S {source} -B {source}/build -DCMAKE_BUILD_TYPE=Release -DTRT_PACKAGE_DIR=/usr "
        f"-DCMAKE_TOOLCHAIN_FILE={source}/cmake/aarch64_linux_toolchain.cmake -DEMBEDDED_TARGET=gb10 "
        f"-DCUDA_CTK_VERSION={CUDA} -DENABLE_CUTE_DSL=ALL",
        f"cmake --build {source}/build --parallel",
        f"{run}/llm_build --onnxDir {FOLDER} --engineDir {ENGINE} --maxBatchSize {MAX_BATCH} "
        f"--maxInputLen {prompt} --maxKVCacheCapacity {cache}",
        f"{run}/llm_inference --engineDir {ENGINE} --inputFile input.json --outputFile output.json",
    ]


def _versions(python: Path) -> dict[str, str]:
    """Versions of the packages in the exporter's environment."""
    require(
        python.is_file(),
        field="edge_llm:environment",
        value=str(python),
        allowed="the exporter's environment",
        fix=_SETUP,
    )
    code = f"import importlib.metadata as m, json; print(json.dumps({{p: m.version(p) for p in {_PACKAGES}}}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    require(
        done.returncode == 0, field="edge_llm:environment", value=last, allowed="the exporter's packages", fix=_SETUP
    )
    versions: dict[str, str] = json.loads(done.stdout)
    field, found = "edge_llm:tensorrt-edgellm", versions["tensorrt-edgellm"]
    require(
        found == EXPORTER, field=field, value=found, allowed=f"{EXPORTER}, whose graph is documented here", fix=_SETUP
    )
    return versions


def _run_exporter(command: list[str], note: Note) -> None:
    environment = os.environ | _TARGET | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    tail: deque[str] = deque(maxlen=_TAIL)
    with subprocess.Popen(
        command, env=environment, text=True, encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line.rstrip())
            for pattern, text in _STAGES:
                if (match := pattern.search(line)) is not None:
                    note(f"export   {text.format(*match.groups())}")
    if process.returncode != 0:
        raise FieldError(
            field="edge_llm:export",
            value=f"exit status {process.returncode}; last lines: " + " | ".join(line for line in tail if line),
            allowed="0",
            fix="see its message; report it with the checkpoint's config.json",
        )


def _look_into(python: Path, graph: Path, checkpoint: Path) -> dict[str, Any]:
    """What :mod:`trtllm_build.compilers.edge_llm.graph` reports, run in the exporter's environment."""
    command = [str(python), "-I", str(_GRAPH), str(graph), str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    fix = "report it with the build log"
    require(
        done.returncode == 0,
        field="edge_llm:model.onnx",
        value=last,
        allowed="a graph that onnx.checker accepts",
        fix=fix,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report
