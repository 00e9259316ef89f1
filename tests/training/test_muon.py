"""Muon: orthogonalised steps for matrices and stacks of them, AdamW for everything else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nemo_diffgemma.training.muon import Muon, orthogonalised

SETTINGS = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, "orthogonal": True}


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 8), (16, 4), (4, 16), (3, 8, 4)]
    found = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    for parameter in found:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return found


def test_singular_values_are_near_one() -> None:
    matrices = torch.randn(5, 8, 24, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_a_step_is_along_the_nearest_orthogonal_matrix() -> None:
    """The first update of Nesterov's momentum is along the gradient."""
    found = parameters()
    before = [p.detach().clone() for p in found]
    optimizer = Muon([{"params": found} | SETTINGS], betas=(0.9, 0.95))
    optimizer.step()
    for old, parameter in zip(before, found, strict=True):
        rows, columns = parameter.shape[-2:]
        moved = (old - parameter.detach()) / (0.1 * max(1.0, rows / columns) ** 0.5)
        u, _, v = torch.linalg.svd(parameter.grad, full_matrices=False)
        assert (moved * (u @ v)).sum((-2, -1)).min() > 0.7 * min(rows, columns)
        assert torch.linalg.svdvals(moved).max() < 1.3


def test_a_stack_moves_as_its_matrices_alone() -> None:
    stack = parameters()[3]
    alone = [part.detach().clone().requires_grad_() for part in stack]
    for part, gradient in zip(alone, stack.grad, strict=True):
        part.grad = gradient.clone()
    for group in ([stack], alone):
        Muon([{"params": group} | SETTINGS], betas=(0.9, 0.95)).step()
    torch.testing.assert_close(stack.detach(), torch.stack([part.detach() for part in alone]))


def test_other_groups_move_as_under_adamw() -> None:
    ours, theirs = parameters()[0], parameters()[0]
    matrix = parameters()[1]
    groups = [{"params": [matrix]} | SETTINGS, {"params": [ours], "lr": 0.01, "weight_decay": 0.1}]
    optimizers = [
        Muon(groups, betas=(0.8, 0.9)),
        torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=(0.8, 0.9)),
    ]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_restored_state_goes_on_as_if_never_stopped(steps: int) -> None:
    def run(found: list[Tensor], state: dict[str, object] | None, count: int) -> dict[str, object]:
        optimizer = Muon([{"params": found[:3]} | SETTINGS, {"params": found[3:], "lr": 0.01}], betas=(0.8, 0.9))
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(count):
            optimizer.step()
        return dict(optimizer.state_dict())

    whole, parted = parameters(), parameters()
    run(whole, None, 2 * steps)
    run(parted, run(parted, None, steps), steps)
    assert all(torch.equal(a, b) for a, b in zip(whole, parted, strict=True))
