"""Compile every kernel for a GPU that need not be there: ``python -m trtllm_build.kernels.machine_code``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.models import RELEASED, configured

MODULES = (
    "attention.paged",
    "attention.cache",
    "experts.dispatch",
    "experts.feed_forward",
    "fp8",
    "gate",
    "attention.heads",
    "linear",
    "norm",
    "residual",
    "experts.router",
    "vocabulary.read_out",
)
SHARED_BYTES = {90: 232_448, 120: 101_376, 121: 101_376}  # a block may use (CUDA C programming guide, table 30)


@dataclass(frozen=True)
class Case:
    """One specialisation of a kernel.

    Args:
        name: unique among all cases.
        kernel: the ``triton.jit`` function.
        types: argument -> type (``*bf16``, ``i32``, ...) of what is passed at run time. Pointers are taken to be
            aligned to 16 bytes, as torch's allocations are.
        constants: argument -> value of each ``constexpr``, and None for absent pointers.
        warps, stages: as in :class:`trtllm_build.kernels.tile.Tile`.
        sms: compute capabilities it is for.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3
    sms: tuple[int, ...] = tuple(SHARED_BYTES)


@dataclass(frozen=True)
class KernelBinary:
    """What became of a case.

    Args:
        name: of the case.
        sm: compute capability, 90 for 9.0.
        bytes: of machine code.
        shared: bytes of shared memory a block uses.
        fits: whether a block of that GPU has as much.
        seconds: it took.
    """

    name: str
    sm: int
    bytes: int
    shared: int
    fits: bool
    seconds: float = field(compare=False)


def all_cases(arch: Architecture) -> Iterator[Case]:
    """Every case of every kernel, at an architecture's shapes."""
    for name in MODULES:
        yield from import_module(f"trtllm_build.kernels.{name}").cases(arch)


def compile_case(case: Case, sm: int) -> KernelBinary:
    """Machine code of one case.

    Raises:
        triton.CompilationError: when the kernel is not valid for that GPU.
    """
    start = time.perf_counter()
    aligned = {
        (case.kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n, t in case.types.items() if t[0] == "*"
    }
    source = ASTSource(fn=case.kernel, signature=case.types, constexprs=case.constants, attrs=aligned)
    options = {"num_warps": case.warps, "num_stages": case.stages}
    built: Any = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    shared = built.metadata.shared
    seconds = round(time.perf_counter() - start, 2)
    return KernelBinary(case.name, sm, len(built.asm["cubin"]), shared, shared <= SHARED_BYTES[sm], seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits 1 when a kernel does not fit its GPU."""
    parser = argparse.ArgumentParser(prog="python -m trtllm_build.kernels.machine_code", description=__doc__)
    parser.add_argument("--sm", type=int, action="append", choices=sorted(SHARED_BYTES), help="90 (H100), 121 (GB10)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    cases = list(all_cases(configured(RELEASED)))
    done = [compile_case(c, sm) for sm in options.sm or [90, 121] for c in cases if sm in c.sms]
    if options.json:
        print(json.dumps([asdict(c) for c in done], indent=2))
    else:
        table = Table("kernel", "SM", "machine code", "shared memory", "fits", "seconds")
        for c in done:
            table.add_row(c.name, str(c.sm), f"{c.bytes:,}", f"{c.shared:,}", "yes" if c.fits else "no", f"{c.seconds}")
        Console().print(table)


if __name__ == "__main__":
    main()
