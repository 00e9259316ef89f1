"""Batches as a function of the step: which examples, padded how, with which noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from nemo_diffgemma.errors import require
from nemo_diffgemma.training.data import Example
from nemo_diffgemma.training.noise import TRAIN, VALIDATE, draw_problem

# Batches are cut from pools of this many batches sorted by length: little padding, still a random order.
POOL = 16


class Batch(NamedTuple):
    """One process's share of a step.

    Args:
        ids: clean prompt and response ``[batch, sequence]`` int64, padded on the right.
        padding: true where ``ids`` is padding ``[batch, sequence]`` bool.
        clean: the block to denoise ``[batch, canvas]`` int64.
        noisy: the same block, corrupted ``[batch, canvas]`` int64.
        block_start: position of the block's first token in ``ids`` ``[batch]`` int64.
        self_condition: whether an example sees its own first prediction ``[batch]`` bool.
        counted: false for an example that only fills a process's share ``[batch]`` bool.
        total_canvas: supervised canvas positions of the step over all processes, a scalar.
        total_pairs: next-token pairs of the step over all processes, a scalar.
    """

    ids: Tensor
    padding: Tensor
    clean: Tensor
    noisy: Tensor
    block_start: Tensor
    self_condition: Tensor
    counted: Tensor
    total_canvas: Tensor
    total_pairs: Tensor


@dataclass(frozen=True)
class Collator:
    """Makes a :class:`Batch` of examples; one for each process."""

    examples: Sequence[Example]
    canvas: int
    vocab_size: int
    pad: int
    self_conditioning_probability: float
    seed: int
    rank: int = 0
    world_size: int = 1

    def __call__(self, chosen: Sequence[int], purpose: int, step: int) -> Batch:
        """This process's share of the step's examples ``chosen`` (indices, over all processes).

        Where they do not divide among the processes, the last one stands in for what is missing, and does not count.
        """
        # every process pads to the longest example of the whole step, and has as many of them: expert parallelism
        # exchanges equal shapes
        length = max(len(self.examples[i]) for i in chosen)
        places = range(self.rank, -(-len(chosen) // self.world_size) * self.world_size, self.world_size)
        mine = [chosen[min(place, len(chosen) - 1)] for place in places]
        ids = torch.full((len(mine), length), self.pad)
        padding = torch.ones(len(mine), length, dtype=torch.bool)
        problems = []
        for row, index in enumerate(mine):
            example = self.examples[index]
            ids[row, : len(example)] = torch.tensor(example.prompt + example.response)
            padding[row, : len(example)] = False
            key = (self.seed, purpose, step, index)
            problems.append(
                draw_problem(example.response, self.canvas, self.vocab_size, self.self_conditioning_probability, key)
            )
        starts = [len(self.examples[i].prompt) + p.block * self.canvas for i, p in zip(mine, problems, strict=True)]
        return Batch(
            ids=ids,
            padding=padding,
            clean=torch.stack([p.clean for p in problems]),
            noisy=torch.stack([p.noisy for p in problems]),
            block_start=torch.tensor(starts),
            self_condition=torch.tensor([p.self_condition for p in problems]),
            counted=torch.tensor([place < len(chosen) for place in places]),
            total_canvas=torch.tensor(len(chosen) * self.canvas),
            total_pairs=torch.tensor(sum(len(self.examples[i]) - 1 for i in chosen)),
        )


class BatchOrder:
    """Which examples each step sees: every epoch a new shuffle, cut into batches of similar length.

    Raises:
        FieldError: when there are fewer examples than one batch.
    """

    def __init__(self, examples: Sequence[Example], batch: int, seed: int):
        allowed = f"at most the {len(examples)} examples of data.train"
        require(len(examples) >= batch, "data.batch", batch, allowed, f"pass data.batch={len(examples)}")
        self._examples, self._batch, self._seed = examples, batch, seed
        self._epoch, self._batches = -1, list[list[int]]()

    def __call__(self, step: int) -> list[int]:
        """Indices of the examples of step ``step``, from 0."""
        epoch, index = divmod(step, len(self._examples) // self._batch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._cut(epoch)
        return self._batches[index]

    def _cut(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed((self._seed << 20) + epoch)
        shuffled = torch.randperm(len(self._examples), generator=generator).tolist()
        shuffled = shuffled[: len(shuffled) // self._batch * self._batch]
        batches = []
        for start in range(0, len(shuffled), POOL * self._batch):
            pool = sorted(shuffled[start : start + POOL * self._batch], key=lambda i: len(self._examples[i]))
            batches += [pool[i : i + self._batch] for i in range(0, len(pool), self._batch)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


class TrainingBatches(IterableDataset[Batch]):
    """Batches from the step a run is at, without end.

    Args:
        first_step: called when iteration starts, so that a resumed run goes on where it stopped.
    """

    def __init__(self, collator: Collator, order: BatchOrder, first_step: Callable[[], int]):
        self._collator, self._order, self._first_step = collator, order, first_step

    def __iter__(self) -> Iterator[Batch]:
        step = self._first_step()
        while True:
            yield self._collator(self._order(step), TRAIN, step)
            step += 1


class ValidationBatches(Dataset[Batch]):
    """All validation examples, always with the same noise."""

    def __init__(self, collator: Collator, batch: int):
        order = sorted(range(len(collator.examples)), key=lambda i: len(collator.examples[i]))
        self._collator = collator
        self._chosen = [order[i : i + batch] for i in range(0, len(order), batch)]

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Batch:
        return self._collator(self._chosen[index], VALIDATE, 0)
