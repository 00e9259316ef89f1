"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for hidden matrices, AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

# The quintic of the post: it pulls singular values towards 1 fastest, and leaves them between 0.7 and 1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """AdamW whose groups with ``orthogonal`` move by an orthogonalised momentum instead.

    torch's own Muon takes no stacks of matrices (a layer's experts are one parameter), and takes one matrix after the
    other, in bfloat16, which is slow on a CPU without such instructions. Here matrices of one shape are done at once.

    A group with ``orthogonal`` has ``lr`` (of a square matrix; a tall one's is larger by the root of its sides' ratio),
    ``momentum`` (Nesterov's) and ``weight_decay``; its parameters are matrices, or stacks ``[n, rows, columns]``. Where
    there are several processes, each orthogonalises a part of the matrices.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]):
        super().__init__([{"orthogonal": False, "momentum": 0.0} | group for group in groups], betas=betas)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every group."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["orthogonal"]:
                self._step(group)
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        same = defaultdict[tuple[int, int], list[tuple[Tensor, Tensor]]](list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(parameter)}  # AdamW wants a step
            state["step"] += 1
            mean = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            update = parameter.grad.lerp(mean, group["momentum"])
            if isinstance(update, DTensor):  # a process holds a part of it
                update = update.full_tensor()
            rows, columns = sorted(update.shape[-2:])
            same[rows, columns].append((parameter, update))
        for pairs in same.values():
            flat = [_wide(update).reshape(-1, *_wide(update).shape[-2:]) for _, update in pairs]
            done = torch.split(_shared(torch.cat(flat)), [len(matrices) for matrices in flat])
            for (parameter, update), found in zip(pairs, done, strict=True):
                direction = _wide(found.reshape(_wide(update).shape), like=update)
                rows, columns = update.shape[-2:]
                if isinstance(parameter, DTensor):
                    mesh, placements = parameter.device_mesh, parameter.placements
                    direction = distribute_tensor(direction.contiguous(), mesh, placements, src_data_rank=None)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest matrices with orthonormal rows, nearly: singular values between 0.7 and 1.2.

    Args:
        matrices: ``[n, rows, columns]`` with no more rows than columns.
    """
    x: Tensor = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x


def _shared(matrices: Tensor) -> Tensor:
    """:func:`orthogonalised`, each process a part of them, where all processes have the same."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world == 1:
        return orthogonalised(matrices)
    part = -(-len(matrices) // world)
    mine = matrices.roll(-part * dist.get_rank(), 0)[:part]  # the last of them may be done twice
    found = matrices.new_empty(world, *mine.shape)
    dist.all_gather(list(found), orthogonalised(mine))
    return found.flatten(0, 1)[: len(matrices)]


def _wide(matrix: Tensor, like: Tensor | None = None) -> Tensor:
    """The matrix with no more rows than columns: as it is or transposed, as ``like`` has to be."""
    rows, columns = (matrix if like is None else like).shape[-2:]
    return matrix.mT if rows > columns else matrix
