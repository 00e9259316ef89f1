"""Ahead-of-time compilation of the network's pieces for this CPU (torch.export, AOTInductor)."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.files import follow_umask
from trtllm_build.contract import SUB
from trtllm_build.network.linear import is_large
from trtllm_build.network.pieces import (
    PIECES,
    Piece,
    Pieces,
    before_experts_weights,
    condition_weights,
    eager_pieces,
    project_weights,
)
from trtllm_build.network.vocabulary import CHUNK
from trtllm_build.network.weights import NetworkWeights

# A wrong stride would otherwise be read as if it were right, without an error.
os.environ["AOTI_RUNTIME_CHECK_INPUTS"] = "1"

_ROWS = Dim("rows", min=2, max=2**20)
_SUBS = Dim("subs", min=2, max=CHUNK // SUB)


@dataclass(frozen=True)
class ExampleInputs:
    """Arguments to export a piece with: ``moving`` have a dynamic number of rows, ``weights`` a fixed shape."""

    name: str
    moving: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    dynamic: tuple[dict[int, Any] | None, ...]


def compiler() -> str | None:
    """Path of the C++ compiler that AOTInductor calls; None when there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def compile_pieces(arch: Architecture, weights: NetworkWeights, folder: Path, progress: Callable[[str], None]) -> None:
    """Write ``<piece>.pt2`` for those of the architecture's pieces that gain by it; those already there are kept."""
    eager = eager_pieces(arch)
    folder.mkdir(parents=True, exist_ok=True)
    for example in examples(arch, weights):
        target = folder / f"{example.name}.pt2"
        if not target.exists() and is_compiled(example):
            progress(example.name)
            partial = folder / f"partial_{target.name}"
            _compile(getattr(eager, example.name), example, partial)
            follow_umask(partial)
            partial.rename(target)


def is_compiled(example: ExampleInputs) -> bool:
    """Whether a piece is worth compiling.

    One with a large float32 product is left to run eagerly: its time is that of the product, for which AOTInductor
    would call the slower library (see :func:`trtllm_build.network.linear.is_large`).
    """
    return not any(is_large(w) for w in example.weights if w.dim() == 2)


def load_pieces(arch: Architecture, folder: Path) -> Pieces:
    """What :func:`compile_pieces` wrote, as callables of the same arguments; eager functions for the rest."""
    eager = eager_pieces(arch)
    compiled = {name: folder / f"{name}.pt2" for name in PIECES}
    with _unpacked():
        found = {n: _load(p, getattr(eager, n)) if p.is_file() else getattr(eager, n) for n, p in compiled.items()}
    return Pieces(**found)


@contextmanager
def _unpacked() -> Iterator[None]:
    """Remove what AOTInductor unpacks into TMPDIR once it is mapped; a process that is killed would leave it there."""
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="diffgemma-pieces-") as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            del os.environ["TMPDIR"]
            if before is not None:
                os.environ["TMPDIR"] = before


def _load(package: Path, eager: Piece) -> Piece:
    run = torch._inductor.aoti_load_package(str(package)).loader.run

    def call(*arguments: Tensor) -> Sequence[Tensor]:
        # torch.export compiles for sizes of 2 and more
        if 1 in arguments[0].shape[:2]:
            return eager(*arguments)
        results: Sequence[Tensor] = run(list(arguments))
        return results

    return call


def _compile(piece: Callable[..., Any], example: ExampleInputs, package: Path) -> None:
    class Module(nn.Module):
        def forward(self, *arguments: Tensor) -> Any:
            return piece(*arguments)

    shapes = (*example.dynamic, *(None for _ in example.weights))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(Module(), (*example.moving, *example.weights), dynamic_shapes=(shapes,))
        torch._inductor.aoti_compile_and_package(program, package_path=str(package))


def examples(arch: Architecture, w: NetworkWeights) -> Iterator[ExampleInputs]:
    """What to export every piece of the architecture with."""
    rows, dtype = arch.canvas_length + 3, w.embedding.dtype
    moving = {0: _ROWS}

    def tensor(width: int) -> Tensor:
        return torch.zeros(rows, width, dtype=dtype)

    x = arch.hidden_size
    yield ExampleInputs("condition", (tensor(x), tensor(x)), condition_weights(w), (moving, moving))
    statistics = torch.zeros(rows, 3, SUB, dtype=dtype), torch.tensor(1.0), torch.zeros(rows)
    yield ExampleInputs("statistics", statistics, (), ({0: _ROWS, 1: _SUBS}, None, moving))
    for is_global, kind in ((False, "sliding"), (True, "global")):
        index = next((i for i in range(arch.num_hidden_layers) if arch.is_global(i) == is_global), None)
        if index is None:
            continue
        layer, size = w.layers[index], arch.head_size(index)
        rotated = (tensor(x), tensor(size), tensor(size))
        yield ExampleInputs(f"project_{kind}", rotated, project_weights(layer), (moving, moving, moving))
        attended = tensor(arch.num_attention_heads * size)
        yield ExampleInputs(
            f"before_experts_{kind}", (tensor(x), attended), before_experts_weights(layer), (moving, moving)
        )
    last = w.layers[-1]
    yield ExampleInputs(
        "after_experts",
        (tensor(x), tensor(x), tensor(x)),
        (last.post_experts_norm, last.post_feedforward_norm, last.denoise_scalar),
        (moving, moving, moving),
    )
