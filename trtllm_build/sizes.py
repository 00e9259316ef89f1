"""What a model's weights take at each precision, and how soon each GPU could read them; nothing is allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from nemo_diffgemma.hf_config import load_architecture
from nemo_diffgemma.hydra_config import choices
from nemo_diffgemma.models import configured
from trtllm_build.plan import CONF
from trtllm_build.quantization.recipe import named_recipe
from trtllm_build.quantization.weight_files import count_shapes

PRECISIONS = ("bf16", "fp8", "nvfp4")


def sizes(model: str) -> dict[str, Any]:
    """Bytes by class and precision, and milliseconds to read all of them once by GPU.

    Args:
        model: a name of ``nemo_diffgemma/conf/model``, or a checkpoint directory.

    Raises:
        FieldError: when it is neither.
    """
    arch = load_architecture(model) if Path(model).is_dir() else configured(model)
    counted = {name: count_shapes(arch, named_recipe(name)) for name in PRECISIONS}
    totals = {name: sum(c.bytes for c in found) for name, found in counted.items()}
    rates = {gpu: OmegaConf.load(CONF / "gpu" / f"{gpu}.yaml").memory_gb_per_second for gpu in choices(CONF, "gpu")}
    return {
        "model": model,
        "bytes": {name: {c.name: c.bytes for c in found} for name, found in counted.items()},
        "total_bytes": totals,
        "ms_to_read": {
            gpu: {name: round(total / 1e6 / rate, 2) for name, total in totals.items()}
            for gpu, rate in rates.items()
            if rate is not None
        },
    }


def show(found: dict[str, Any]) -> None:
    """Print :func:`sizes` as a table."""
    table = Table("", *PRECISIONS, title=found["model"])
    for kind in dict.fromkeys(k for classes in found["bytes"].values() for k in classes):
        table.add_row(kind, *(f"{found['bytes'][p].get(kind, 0) / 1e9:.3f} GB" for p in PRECISIONS))
    table.add_section()
    table.add_row("all", *(f"{found['total_bytes'][p] / 1e9:.2f} GB" for p in PRECISIONS))
    for gpu, ms in found["ms_to_read"].items():
        table.add_row(f"read once by {gpu}", *(f"{ms[p]:.2f} ms" for p in PRECISIONS))
    Console().print(table)
