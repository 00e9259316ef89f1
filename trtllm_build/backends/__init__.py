"""What computes: one module per backend, each of them a :class:`trtllm_build.contract.Backend`."""

from __future__ import annotations

from importlib import import_module

from nemo_diffgemma.errors import require
from trtllm_build.contract import Backend
from trtllm_build.spec import EngineSpec

# Backend -> module with ``load(spec)``. What one backend needs may be missing where another runs.
_MODULES = {"torch_cpu": "torch_cpu", "cuda": "cuda.backend", "tensorrt_rtx": "tensorrt_rtx.load"}

# Those whose canvases can be held to a grammar: what :attr:`trtllm_build.contract.Backend.keeps_forms` is of them.
KEEP_FORMS = frozenset({"torch_cpu", "cuda"})
# Those that read the probabilities of labels: what :attr:`~trtllm_build.contract.Backend.reads_labels` is of them.
READ_LABELS = frozenset({"torch_cpu"})


def load_backend(spec: EngineSpec) -> Backend:
    """A finished bundle's weights on the hardware that it is for, ready to run.

    Raises:
        FieldError: when it is for a runtime of NVIDIA's, or for a backend that this version does not know.
    """
    backend = spec.manifest["backend"]
    require(
        backend != "edge_llm",
        field="engine:backend",
        value="edge_llm",
        allowed="a bundle that this project's runtime runs; this one is run by NVIDIA TensorRT Edge-LLM",
        fix="run the commands under `remaining` in its manifest.json, on the DGX Spark",
    )
    require(
        backend in _MODULES,
        field="engine:backend",
        value=backend,
        allowed=", ".join(_MODULES),
        fix="build the engine again",
    )
    loaded: Backend = import_module(f"{__name__}.{_MODULES[backend]}").load(spec)
    return loaded
