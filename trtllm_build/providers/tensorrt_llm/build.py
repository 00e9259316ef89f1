"""Compile TensorRT-LLM's fused experts for Hopper, and of them only what fp8 needs.

flashinfer-python ships the sources. Its own build compiles 248 files for every data type, hours of work; this one
compiles 17, for e4m3 activations, e4m3 weights and bf16 output, into one library with a C interface
(``csrc/binding.cu``): the machine that runs it needs neither flashinfer nor a compiler, and of CUDA only the driver.

No GPU is needed, and a quarter of an hour of one core. Objects are kept: a build that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from nemo_diffgemma.errors import FieldError, require

FLASHINFER = "0.7.2.post1"
ARCHITECTURE = "sm_90a"
LIBRARY = "fused_experts_fp8.so"
DEFAULT_OUT = Path("~/.cache/diffgemma/tensorrt_llm").expanduser()

_NVCC = "apt-get install cuda-nvcc-13-0 cuda-cudart-dev-13-0 from NVIDIA's repository; put its bin folder on PATH"
_INSTALL = "pip install 'diffgemma[flashinfer]'"
_OWN = Path(__file__).parent / "csrc"
_KERNELS = "nv_internal/tensorrt_llm/kernels"
# what the two templates call and is no template itself
_UPSTREAM = (
    f"{_KERNELS}/cutlass_kernels/moe_gemm/moe_gemm_tma_warp_specialized_input.cu",
    f"{_KERNELS}/cutlass_kernels/cutlass_heuristic.cpp",
    f"{_KERNELS}/preQuantScaleKernel.cu",
    f"{_KERNELS}/lora/lora.cpp",
    "nv_internal/cpp/common/envUtils.cpp",
    "nv_internal/cpp/common/logger.cpp",
    "nv_internal/cpp/common/memoryUtils.cu",
    "nv_internal/cpp/common/stringUtils.cpp",
    "nv_internal/cpp/common/tllmException.cpp",
)
# data types left out: without these definitions their code is not even parsed
_DROPPED = ("-DENABLE_FP4", "-DENABLE_FP8_BLOCK_SCALE", "-DCUTLASS_MIXED_GEMM_FP4_FP8_PREPROCESSED_SIGNS=1", "")
_LAUNCHER = f"{_KERNELS.removeprefix('nv_internal/')}/cutlass_kernels/moe_gemm/launchers/moe_gemm_tma_ws_launcher.inl"
# A canvas of 256 tokens brings 16 rows to an expert: of a wider tile most would be padding. Left out as well is
# upstream's second set of the same tiles, which adds up a token's experts as it writes, in bf16 and in no fixed order.
_TILES = ((128, 16), (128, 32), (128, 64), (128, 128))


def build(out: Path, jobs: int) -> Path:
    """Compile the library, or find it compiled.

    Args:
        out: Folder of all builds; each lies in a folder named by its key (versions, architecture, list of sources).
        jobs: Compilers running at the same time.

    Returns:
        The library; beside it lies a JSON file of the same name with what it was made from.

    Raises:
        FieldError: Something the build needs is not installed, or the compiler failed.
    """
    nvcc, headers = _toolchain()
    with tempfile.TemporaryDirectory() as scratch:
        # flashinfer reads both when imported, and writes the sources of its own, larger build below the second
        os.environ["FLASHINFER_CUDA_ARCH_LIST"] = "9.0a"
        os.environ["FLASHINFER_WORKSPACE_BASE"] = scratch
        from flashinfer.jit import cpp_ext, env
        from flashinfer.jit.fused_moe import gen_cutlass_fused_moe_sm90_module

        upstream = gen_cutlass_fused_moe_sm90_module()
    kernels = _kernels()
    own = sorted(_OWN.glob("*.cu"))
    versions = {"flashinfer": FLASHINFER, "nvcc": nvcc, "architecture": ARCHITECTURE}
    names = sorted([*kernels, *(path.name for path in own), *_UPSTREAM])
    folder = out / _sha256(json.dumps([versions, names]).encode())[:16]
    (folder / "sources").mkdir(parents=True, exist_ok=True)
    for name, text in kernels.items():
        _write(folder / "sources" / name, text)
    # relative to the folder, where the compiler runs: a cache may be moved
    sources = [*own, *(Path("sources") / name for name in kernels)]
    sources += [env.FLASHINFER_CSRC_DIR / name for name in _UPSTREAM]

    includes = [path for path in upstream.extra_include_dirs if Path(scratch) not in path.parents]
    cuda = cpp_ext.get_cuda_path()
    common = [*cpp_ext.build_common_cflags(cuda, [_OWN, *includes]), *(f"-isystem {path}" for path in headers)]
    flags = [flag for flag in cpp_ext.build_cuda_cflags(common, upstream.extra_cuda_cflags) if flag not in _DROPPED]
    _write(folder / "build.ninja", _ninja(cuda, common, flags, sources))
    seconds = _compile(folder, jobs)

    library = folder / LIBRARY
    about = {
        **versions,
        "sources": {source.name: _sha256((folder / source).read_bytes()) for source in sources},
        "seconds": seconds,
        "bytes": library.stat().st_size,
        "sha256": _sha256(library.read_bytes()),
    }
    _write(library.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
    return library


def _toolchain() -> tuple[str, list[Path]]:
    """Version of nvcc, and the folders of the CUDA headers which flashinfer wants and a toolkit may lack."""
    found = shutil.which("nvcc")
    if found is None:
        raise FieldError(field="nvcc", value=None, allowed="the compiler of CUDA 13 on PATH", fix=_NVCC)
    if shutil.which("ninja") is None:
        raise FieldError(field="ninja", value=None, allowed="ninja on PATH", fix="pip install ninja")
    try:
        version = importlib.metadata.version("flashinfer-python")
    except importlib.metadata.PackageNotFoundError:
        raise FieldError(field="flashinfer-python", value=None, allowed=FLASHINFER, fix=_INSTALL) from None
    require(version == FLASHINFER, field="flashinfer-python", value=version, allowed=FLASHINFER, fix=_INSTALL)
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    headers = []
    for header, package in (("cublasLt.h", "nvidia-cublas"), ("curand_kernel.h", "nvidia-curand")):
        folders = [f for root in roots for f in root.glob("*/include") if (f / header).exists()]
        require(
            bool(folders),
            field=header,
            value=None,
            allowed=f"the header, as in package {package}",
            fix=f"pip install {package}",
        )
        headers.append(folders[0])
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"V(\d+\.\d+\.\d+)", said)
    release = match[1] if match else "unknown"
    require(release.startswith("13."), field="nvcc", value=release, allowed="13.x", fix=_NVCC)
    return release, list(dict.fromkeys(headers))


def _kernels() -> dict[str, str]:
    """Sources of the grouped products, a file a tile shape, and one that names the shapes left out."""
    from flashinfer.jit.gemm.cutlass import generate_kernels as generator

    fp8, bf16 = generator.DataType.e4m3, generator.DataType.bf16
    kept: dict[str, list[Any]] = {}
    left_out = ['#include "left_out.h"']
    for kernel in generator.generate_sm90_grouped_gemm_operations(True):
        if kernel.act_type != fp8 or kernel.output_type != bf16:
            continue
        rows, columns, depth = kernel.cta_shape
        if kernel.epi_fusion == generator.TrtLlm_EpilogueFusion.epilogue_fusion_none and (rows, columns) in _TILES:
            kept.setdefault(f"gemm_{rows}x{columns}.cu", []).append(kernel)
        else:
            fusion = generator.EpiFusion[kernel.epi_fusion].split(":")[-1]
            cluster = f"{kernel.cga_shape[0]}, {kernel.cga_shape[1]}, {str(kernel.swap_ab).lower()}"
            left_out.append(f"LEFT_OUT({fusion}, {rows}, {columns}, {depth}, {cluster});")
    sources = {name: generator.get_file_content([_LAUNCHER], kernels) for name, kernels in kept.items()}
    return {**sources, "left_out.cu": "\n".join(left_out) + "\n"}


def _ninja(cuda_home: str, common: list[str], flags: list[str], sources: list[Path]) -> str:
    """The build file; nvcc compiles C++ too and links, since it finds CUDA's headers and its static runtime itself."""
    objects = {source: f"{source.stem}.o" for source in sources}
    return "\n".join(
        [
            f"cuda_home = {cuda_home}",
            f"common_cflags = {' '.join(common)}",
            f"cuda_cflags = {' '.join(flags)}",
            "rule cuda",
            "  command = nvcc --generate-dependencies-with-compile -MF $out.d $cuda_cflags -c $in -o $out",
            "  description = $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            # a symbol that is missing is found here and not on the machine with the GPU
            f"  command = nvcc -shared -arch={ARCHITECTURE} -Xlinker --no-undefined -Xlinker --strip-all $in -o $out",
            "  description = $out",
            *(f"build {path}: cuda {source}" for source, path in objects.items()),
            f"build {LIBRARY}: link {' '.join(objects.values())}",
            "",
        ]
    )


def _compile(folder: Path, jobs: int) -> dict[str, float]:
    """Run ninja, print a line per file, and give the seconds of each object, of this run or an earlier one."""
    command = ["ninja", "-C", str(folder), "-j", str(jobs)]
    started, said = time.monotonic(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ninja:
        assert ninja.stdout is not None
        for line in ninja.stdout:
            said.append(line)
            if match := re.match(r"(\[\d+/\d+\]) (\S+)$", line):
                time.sleep(0.1)  # ninja logs the time just after it prints
                print(f"{match[1]} {match[2]} {_seconds(folder).get(match[2], 0):.0f} s", flush=True)
    if ninja.returncode:
        log = folder / "error.log"
        _write(log, "".join(said))
        first = next((line.strip() for line in said if "error" in line or "FAILED" in line), said[-1].strip())
        raise FieldError(field="nvcc", value=first, allowed="sources that compile and link", fix=f"read {log}")
    print(f"{folder / LIBRARY} after {time.monotonic() - started:.0f} s", flush=True)
    return _seconds(folder)


def _seconds(folder: Path) -> dict[str, float]:
    """Seconds of every object that ninja has logged, in the order in which they were finished."""
    log = folder / ".ninja_log"
    rows = [line.split("\t") for line in log.read_text().splitlines()[1:]] if log.exists() else []
    return {row[3]: (int(row[1]) - int(row[0])) / 1000 for row in rows}


def _write(path: Path, text: str) -> None:
    """Write only what differs, so that ninja does not see a change where there is none."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
