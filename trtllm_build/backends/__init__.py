"""One file (or folder) a compiler, one protocol (`base`)."""

from __future__ import annotations

from nemo_diffgemma.errors import require
from trtllm_build.bundle import Bundle
from trtllm_build.contract import Backend


def load_backend(bundle: Bundle) -> Backend:
    """The bundle's weights on the hardware that it is for, ready to run.

    Raises:
        FieldError: when it is for a runtime of NVIDIA's.
    """
    require(
        bundle.manifest["backend"] != "edge_llm",
        "engine:backend",
        "edge_llm",
        "a bundle that this project's runtime runs; this one is run by NVIDIA TensorRT Edge-LLM",
        "run the commands under `remaining` in its manifest.json, on the DGX Spark",
    )
    # one backend's imports are of no use to another, and may be missing there
    if bundle.manifest["backend"] == "torch_cpu":
        from trtllm_build.backends.torch_cpu import TorchCpu

        return TorchCpu.load(bundle)
    if bundle.manifest["backend"] == "tensorrt_rtx":
        from trtllm_build.backends.tensorrt_rtx.load import load

        return load(bundle)
    from trtllm_build.backends.cuda.backend import Cuda

    return Cuda.load(bundle)
