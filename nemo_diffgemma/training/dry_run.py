"""``--dry-run``: how large a run is, from the network on the meta device; nothing is allocated or read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from nemo_diffgemma.training.initial_weights import named_weights
from nemo_diffgemma.training.network import build_network
from nemo_diffgemma.training.settings import TrainConfig

# bytes a weight, and what every 16 weights of nvfp4 share: one fp8 scale
_NVFP4 = 0.5 + 1 / 16
# float32 masters, their gradients, AdamW's two moments
_WEIGHT, _GRADIENT, _ADAMW = 4, 4, 8


@dataclass(frozen=True)
class Count:
    """Numbers of weights.

    ``active`` leaves out the experts that a token is not routed to, and nothing else: the embedding counts once, for
    reading a token and for the logits it is tied to.
    """

    total: int
    experts: int
    active: int
    trained: int


def count(config: TrainConfig) -> Count:
    """Weights of the text model; the vision tower is carried along, not trained."""
    arch = config.arch
    weights = dict(named_weights(build_network(arch, config.optim.train_router)))
    total = sum(p.numel() for p in weights.values())
    experts = sum(p.numel() for name, p in weights.items() if ".moe.experts." in name)
    trained = sum(p.numel() for p in weights.values() if p.requires_grad)
    return Count(total, experts, total - experts + experts * arch.top_k_experts // arch.num_experts, trained)


def summary(config: TrainConfig) -> dict[str, Any]:
    """Everything ``--dry-run`` shows, JSON-ready; bytes are whole numbers."""
    weights, parallel = count(config), config.parallel
    others = weights.total - weights.experts
    # experts are divided by expert_parallel and sharded over what is left, which is every process again
    share = 1 / parallel.world_size
    held = {
        "weights": int(weights.total * _WEIGHT * share),
        "gradients": int(weights.trained * _GRADIENT * share),
        "adamw_states": int(weights.trained * _ADAMW * share),
    }
    return {
        "parameters": {
            "total": weights.total,
            "active": weights.active,
            "experts": weights.experts,
            "trained": weights.trained,
        },
        "bytes": {
            "float32": weights.total * 4,
            "bfloat16": weights.total * 2,
            "fp8": weights.total,
            "nvfp4_experts_bfloat16_rest": int(weights.experts * _NVFP4) + others * 2,
        },
        "parallel": {
            "name": parallel.name,
            "processes": parallel.world_size,
            "expert_parallel": parallel.expert_parallel,
            "experts_per_process": config.arch.num_experts // parallel.expert_parallel,
            "bytes_per_process": held | {"sum": sum(held.values())},
        },
    }


def show(values: dict[str, Any]) -> None:
    """Print :func:`summary` as a table."""
    table = Table(title="dry run: nothing was allocated", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, number in values["parameters"].items():
        table.add_row(f"parameters, {name}", f"{number / 1e9:,.2f} B" if number >= 1e8 else f"{number / 1e6:,.3f} M")
    table.add_section()
    for name, size in values["bytes"].items():
        table.add_row(f"weights in {name.replace('_', ' ')}", _size(size))
    table.add_section()
    parallel = values["parallel"]
    title = f"parallel={parallel['name']}"
    table.add_row(title, f"{parallel['processes']} processes, {parallel['experts_per_process']} experts each")
    for name, size in parallel["bytes_per_process"].items():
        table.add_row(f"a process holds, {name.replace('_', ' ')}", _size(size))
    Console().print(table)


def _size(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"
