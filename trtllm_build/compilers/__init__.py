"""What the build does for one backend beside writing weights: compile, measure, verify. One file a backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nemo_diffgemma.checkpoint import Checkpoint
from trtllm_build.plan import Plan

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
    """The compiler of a backend of ``conf/gpu``."""
    if backend == "torch_cpu":
        from trtllm_build.compilers.torch_cpu import compile_engine

        return compile_engine
    if backend == "edge_llm":
        from trtllm_build.compilers.edge_llm.compile import compile_engine as compile_edge_llm

        return compile_edge_llm
    if backend == "tensorrt_rtx":
        from trtllm_build.compilers.tensorrt_rtx.compile import compile_engine as compile_tensorrt_rtx

        return compile_tensorrt_rtx
    from trtllm_build.compilers.cuda.compile import compile_engine as compile_cuda

    return compile_cuda
