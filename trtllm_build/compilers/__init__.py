"""What the build does for one backend beside writing weights: compile, measure, verify. One module per backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.errors import require
from trtllm_build.plan import Plan

# Backend -> module with ``compile_engine``. What one backend needs may be missing where another is built.
_MODULES = {
    "torch_cpu": "torch_cpu",
    "cuda": "cuda.compile",
    "tensorrt_rtx": "tensorrt_rtx.compile",
    "edge_llm": "edge_llm.compile",
}
Note = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a compiler says of the bundle it finished.

    Args:
        hardware: what the bundle is for; checked before it is loaded.
        runtime: how it is to execute, as measured on this machine; empty where nothing was.
        verified: ``executed`` on that hardware, ``compiled`` for it, or ``none``.
        measured: parity, quality and times, each with what it ran on.
        remaining: what is still to be run, and with which command; empty when nothing is.
        io: inputs and outputs, where they are not the engine contract's.
    """

    hardware: dict[str, Any]
    runtime: dict[str, Any]
    verified: str
    measured: dict[str, Any]
    remaining: list[str] = field(default_factory=list)
    io: dict[str, Any] | None = None


class Compiler(Protocol):
    """Finishes a bundle whose weights, architecture, sampler and tokenizer are written."""

    def __call__(self, plan: Plan, checkpoint: Checkpoint | None, work: Path, note: Note) -> Outcome:
        """Compile and verify in ``work``; without a checkpoint the weights are random.

        Raises:
            FieldError: when the engine is not at parity with its reference.
        """


def compiler(backend: str) -> Compiler:
    """The compiler of a backend of ``conf/gpu``.

    Raises:
        FieldError: for a backend that this version does not know.
    """
    require(
        backend in _MODULES,
        field="gpu.backend",
        value=backend,
        allowed=", ".join(_MODULES),
        fix="choose a gpu= of conf/gpu",
    )
    found: Compiler = import_module(f"{__name__}.{_MODULES[backend]}").compile_engine
    return found
