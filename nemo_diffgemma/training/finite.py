"""Where numbers stop being finite: the first layer of a forward pass, the weights whose gradients are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@torch.no_grad()
def first_layer(net: nn.Module, forward: Callable[[], object]) -> str:
    """Name of the first module whose output is not finite when ``forward`` is run once more.

    Every process of a sharded network must call it. The answer is process 0's, or else the first that has one.
    """
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if not found and not all(_finite(t) for t in _tensors(output)):
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in net.named_modules() if name]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return _of_any_process(found[0] if found else None) or "the loss itself"


def first_gradient(net: nn.Module) -> str:
    """Name of the first parameter whose gradient is not finite; every process must call it."""
    bad = (n for n, p in net.named_parameters() if p.grad is not None and not _finite(p.grad))
    return _of_any_process(next(bad, None)) or "the norm of all gradients"


def _finite(tensor: Tensor) -> bool:
    local: Any = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # a shard of a DTensor
    return not local.is_floating_point() or bool(local.isfinite().all())


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _of_any_process(name: str | None) -> str | None:
    if not dist.is_initialized():
        return name
    names: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(names, name)
    return next((n for n in names if n is not None), None)
