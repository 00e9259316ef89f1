"""What the benchmarks share: random models, built engines, resident memory, and how results are shown."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.table import Table

from nemo_diffgemma.architecture import GLOBAL, SLIDING, Architecture
from nemo_diffgemma.checkpoint import HELD_OUT, text_tensors
from nemo_diffgemma.checkpoint_writer import write_checkpoint
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.hf_config import load_architecture
from nemo_diffgemma.questions import Question, read_questions
from trtllm_build import Engine, load_engine
from trtllm_build.pipeline import build
from trtllm_build.plan import make_plan

OUT = Path("build/bench")
console = Console(highlight=False)


def architecture(**shapes: Any) -> Architecture:
    """The released anatomy at the given shapes; five of six layers are sliding."""
    layers = shapes["num_hidden_layers"]
    kinds = tuple(GLOBAL if (i + 1) % 6 == 0 or i == layers - 1 else SLIDING for i in range(layers))
    return Architecture(layer_types=kinds, **shapes)


def random_checkpoint(name: str, arch: Architecture) -> Path:
    """A checkpoint of random float32 weights below :data:`OUT`, written once."""
    directory = OUT / name / "checkpoint"
    if (directory / "config.json").is_file() and load_architecture(directory) == arch:
        return directory
    g = torch.Generator().manual_seed(0)

    def tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
        if key.endswith("q_norm.weight"):  # attention logits of about 1, as training leaves them
            return torch.full(shape, float(shape[0]) ** -0.5)
        if len(shape) == 1 or key.endswith(("scale", "scalar")):
            return torch.ones(shape)
        return torch.randn(shape, generator=g).mul_(float(shape[-1]) ** -0.5)

    tensors = {key: tensor(key, shape) for key, shape in text_tensors(arch).items()}
    console.print(f"random weights: {directory}", style="dim")
    return write_checkpoint(directory, arch, tensors, {"eos_token_id": list(arch.eos_token_ids)})


def built_engine(checkpoint: Path, name: str, *overrides: str) -> Path:
    """The CPU bundle of a checkpoint below :data:`OUT`; built unless it is there already."""
    out = OUT / name
    build(make_plan(["gpu=cpu", f"checkpoint={checkpoint}", f"out={out}", *overrides]), _say)
    return out


def run(main: Callable[[], None]) -> NoReturn:
    """Run a benchmark as a command: a user's mistake is one line and status 2, a file's failure one line and 1."""
    try:
        main()
    except FieldError as error:
        status, said = 2, f"error: {error}"
    except OSError as error:
        status, said = 1, f"error: {error}"
    except KeyboardInterrupt:
        status, said = 130, "stopped: interrupted"
    else:
        raise SystemExit(0)
    print(said, file=sys.stderr)
    raise SystemExit(status)


def demo() -> tuple[Engine, list[Question]]:
    """The engine and the held-out questions that `make demo` left.

    Raises:
        FieldError: when it has not run.
    """
    root = Path("build/demo")
    held_out = root / "checkpoint" / HELD_OUT
    for path in (root / "engine", held_out):
        require(path.exists(), field="demo", value=str(path), allowed="what `make demo` leaves", fix="run `make demo`")
    return load_engine(root / "engine"), read_questions(held_out)


def reset_peak() -> None:
    """Start to measure this process's peak memory anew."""
    Path("/proc/self/clear_refs").write_text("5")


def memory() -> tuple[int, int]:
    """Resident bytes of this process now, and at most since :func:`reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return 1024 * int(values["VmRSS"]), 1024 * int(values["VmHWM"])


def show(name: str, title: str, rows: Sequence[Mapping[str, Any]], **values: Any) -> None:
    """Print rows as a table, write everything to ``build/bench/<name>.json`` and print that too."""
    table = Table("", title=title)  # a row a figure: there are more figures than things compared
    names, *figures = rows[0]
    for row in rows:
        table.add_column(str(row[names]), justify="right")
    for figure in figures:
        table.add_row(figure.replace("_", " "), *(_cell(row[figure]) for row in rows))
    console.print(table)
    cpu = platform.processor() or platform.machine()
    machine = {"cpu": cpu, "capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}
    result = {"benchmark": name, "at": time.strftime("%Y-%m-%d"), "machine": machine, **values, "rows": list(rows)}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def _cell(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _say(line: str) -> None:
    console.print(line, style="dim", markup=False)
