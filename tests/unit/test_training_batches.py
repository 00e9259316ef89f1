"""Batches, noise and masks are functions of the step, whoever computes them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_diffgemma.architecture import GLOBAL, SLIDING
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.training.batches import BatchOrder, Collator, TrainingBatches, ValidationBatches
from nemo_diffgemma.training.data import Example
from nemo_diffgemma.training.masks import canvas_positions, denoise_masks
from nemo_diffgemma.training.noise import TRAIN, VALIDATE, draw_problem

CANVAS, VOCAB = 8, 50


def examples(count: int = 40) -> list[Example]:
    g = torch.Generator().manual_seed(1)

    def ids(length: int) -> list[int]:
        return torch.randint(VOCAB, (length,), generator=g).tolist()

    return [Example(ids(1 + i % 7), ids(CANVAS * (1 + i % 3))) for i in range(count)]


def collator(rank: int = 0, world: int = 1, seed: int = 3) -> Collator:
    return Collator(examples(), CANVAS, VOCAB, 0, 0.5, seed, rank, world)


def test_every_epoch_sees_every_example_once_in_another_order() -> None:
    order = BatchOrder(examples(), 8, seed=0)
    epochs = [[order(step) for step in range(e * 5, e * 5 + 5)] for e in range(3)]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == list(range(40))
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_are_of_similar_length() -> None:
    data = examples()
    order = BatchOrder(data, 8, seed=0)
    spread = [max(len(data[i]) for i in order(s)) - min(len(data[i]) for i in order(s)) for s in range(5)]
    assert max(spread) < max(map(len, data)) - min(map(len, data))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(FieldError, match=r"data.batch: 41.*at most the 40 examples.*pass data.batch=40"):
        BatchOrder(examples(), 41, seed=0)


def test_any_step_may_be_the_first() -> None:
    def batches(first: int) -> TrainingBatches:
        return TrainingBatches(collator(), BatchOrder(examples(), 8, seed=0), lambda: first)

    whole = list(itertools.islice(batches(0), 14))
    late = list(itertools.islice(batches(9), 5))
    for one, other in zip(whole[9:], late, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_exactly_the_batch_of_one(world: int) -> None:
    chosen = [3, 17, 5, 29, 11, 12, 1, 0]
    whole = collator()(chosen, TRAIN, 6)
    parts = [collator(rank, world)(chosen, TRAIN, 6) for rank in range(world)]
    for rank, part in enumerate(parts):
        for name in ("ids", "padding", "clean", "noisy", "block_start", "self_condition", "counted"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rank::world])
        assert part.total_canvas == whole.total_canvas == 8 * CANVAS
        assert part.total_pairs == whole.total_pairs == int((~whole.padding).sum()) - 8


def test_noise_depends_on_seed_purpose_step_and_example_and_on_nothing_else() -> None:
    response = list(range(3 * CANVAS))
    key = (1, TRAIN, 5, 9)
    first = draw_problem(response, CANVAS, VOCAB, 0.5, key)
    again = draw_problem(response, CANVAS, VOCAB, 0.5, key)
    assert torch.equal(first.noisy, again.noisy)
    assert (first.block, first.self_condition) == (again.block, again.self_condition)
    others = [(2, TRAIN, 5, 9), (1, VALIDATE, 5, 9), (1, TRAIN, 6, 9), (1, TRAIN, 5, 10)]
    drawn = [draw_problem(response, CANVAS, 10**6, 0.5, k).noisy.tolist() for k in [key, *others]]
    assert len({tuple(d) for d in drawn}) == 5


def test_blocks_and_coins_come_up_evenly() -> None:
    drawn = [draw_problem(list(range(4 * CANVAS)), CANVAS, VOCAB, 0.5, (0, TRAIN, s, 0)) for s in range(2000)]
    for block in range(4):
        assert 400 < sum(p.block == block for p in drawn) < 600
    assert 900 < sum(p.self_condition for p in drawn) < 1100
    for problem in drawn[:20]:
        assert problem.clean.tolist() == list(range(problem.block * CANVAS, (problem.block + 1) * CANVAS))


def test_validation_sees_each_example_once_with_the_same_noise() -> None:
    batches = ValidationBatches(collator(), 16)
    assert sum(len(batches[i].ids) for i in range(len(batches))) == 40
    assert torch.equal(batches[1].noisy, ValidationBatches(collator(), 16)[1].noisy)


@pytest.mark.parametrize(("count", "world"), [(41, 2), (1, 2), (3, 4), (40, 4)])
def test_no_validation_example_is_left_out_whatever_the_number_of_processes(count: int, world: int) -> None:
    """Where they do not divide, one that is there already fills the place: all have as many, and it does not count."""

    def batches(rank: int, world: int) -> ValidationBatches:
        return ValidationBatches(Collator(examples(count), CANVAS, VOCAB, 0, 0.5, 3, rank, world), 16)

    whole, parts = batches(0, 1), [batches(rank, world) for rank in range(world)]
    assert len({len(part) for part in (whole, *parts)}) == 1
    for index in range(len(whole)):
        wanted, found = whole[index], [part[index] for part in parts]
        assert wanted.counted.all()
        assert len({part.ids.shape for part in found}) == 1
        assert {int(part.total_canvas) for part in found} == {int(wanted.total_canvas)}
        assert {int(part.total_pairs) for part in found} == {int(wanted.total_pairs)}
        rows = [tuple(row.tolist()) for part in found for row in part.noisy[part.counted]]
        assert sorted(rows) == sorted(tuple(row.tolist()) for row in wanted.noisy)


@settings(max_examples=60, deadline=None)
@given(start=st.integers(1, 60), extra=st.integers(0, 30), window=st.integers(1, 70), canvas=st.integers(1, 9))
def test_a_canvas_sees_what_generation_would_have_cached(start: int, extra: int, window: int, canvas: int) -> None:
    masks = denoise_masks(torch.tensor([start]), start + extra, canvas, window, torch.float32)
    for kind, first in ((GLOBAL, 0), (SLIDING, max(0, start - (window - 1)))):
        keep = masks[kind][0, 0] == 0
        assert keep.shape == (canvas, start + extra + canvas)
        assert (keep == keep[:1]).all()
        seen = keep[0].nonzero().flatten().tolist()
        assert seen == [*range(first, start), *range(start + extra, start + extra + canvas)]


def test_masks_equal_automodels() -> None:
    from nemo_automodel.components.models.diffusion_gemma.attention_mask import build_block_diffusion_training_mask

    prefix, blocks, window = torch.tensor([5, 11]), 3, 7
    length = blocks * CANVAS
    sequence = 11 + length
    full, sliding = build_block_diffusion_training_mask(prefix, length, sequence, CANVAS, sliding_window=window)
    for block in range(blocks):
        ours = denoise_masks(prefix + block * CANVAS, sequence, CANVAS, window, torch.float32)
        rows = slice(block * CANVAS, (block + 1) * CANVAS)
        for kind, theirs in ((GLOBAL, full), (SLIDING, sliding)):
            assert torch.equal((ours[kind] == 0)[..., :sequence], theirs[:, :, rows, :sequence])


def test_canvas_positions_continue_where_the_block_starts() -> None:
    assert canvas_positions(torch.tensor([4, 9]), 3).tolist() == [[4, 5, 6], [9, 10, 11]]
