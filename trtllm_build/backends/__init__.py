"""One file (or folder) a compiler, one protocol (`base`)."""

from __future__ import annotations

from trtllm_build.backends.base import Backend
from trtllm_build.bundle import Bundle


def load_backend(bundle: Bundle) -> Backend:
    """The bundle's weights on the hardware that it is for, ready to run."""
    # one backend's imports are of no use to another, and may be missing there
    if bundle.manifest["backend"] == "torch_cpu":
        from trtllm_build.backends.torch_cpu import TorchCpu

        return TorchCpu.load(bundle)
    from trtllm_build.backends.cuda.backend import Cuda

    return Cuda.load(bundle)
