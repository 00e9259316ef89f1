"""From hidden states to tokens under a grammar: what each class of tokens weighs, then exact inference over classes.

The vocabulary is read chunk by chunk as in :mod:`trtllm_build.network.vocabulary`. Of large classes running statistics
are kept, of small ones the logits; nothing of vocabulary width is. Soft embeddings take a second sweep, of those
positions at which large classes still weigh anything.

The network's side of it runs on the device that holds the hidden states; inference over classes runs on the host, which
gets four numbers of each large class and the logits of small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trtllm_build.contract import Constraint, ReadOut
from trtllm_build.grammar import walks
from trtllm_build.grammar.inference import ClassStatistics, Floats, Integers, infer
from trtllm_build.grammar.transitions import Transitions
from trtllm_build.network.linear import linear
from trtllm_build.sampling import Sampling

# A class that weighs less moves a soft embedding by less than its own rounding.
_NOTHING = 1e-9


@dataclass(frozen=True)
class Table:
    """The tied embedding as output projection.

    Args:
        rows: ``[vocab, hidden]``.
        chunk: rows that are read at a time.
        logits: soft-capped logits ``[positions, tokens]`` float32 of hidden states and some of the rows.
    """

    rows: Tensor
    chunk: int
    logits: Callable[[Tensor, Tensor], Tensor]

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """First id and rows of each chunk."""
        for start in range(0, len(self.rows), self.chunk):
            yield start, self.rows[start : start + self.chunk]


def read_out(
    hidden: Tensor,
    table: Table,
    temperature: float,
    draws: Tensor,
    soft: bool,
    constraint: Constraint,
    sampling: Sampling,
) -> ReadOut:
    """Argmax, sample, entropy and next soft embedding of the positions that a grammar binds.

    Args:
        hidden: normed hidden states ``[rows, hidden]``.
        table: what they are multiplied with, on the same device.
        temperature: of this step.
        draws: ``[rows]`` uniforms in [0, 1), on the host.
        soft: whether soft embeddings are wanted; they are not scaled.
        constraint: the grammar, and where in it this canvas begins.
        sampling: how tokens are drawn; no nucleus.

    Returns:
        Soft embeddings on the device of ``hidden``, all else on the host.
    """
    canvas = _Canvas(hidden, table, constraint.transitions, 1.0 / temperature)
    where = constraint.transitions, constraint.state, constraint.remaining
    uniforms = draws.double().numpy()
    found = infer(*where, canvas.statistics, uniforms)
    argmax_ids = torch.from_numpy(found.argmax_ids)
    if sampling.certain(temperature):
        sampled_ids = argmax_ids
    elif sampling.temperature == 1:
        sampled_ids = canvas.choose(found.classes, found.shares)
    else:
        other = _Canvas(hidden, table, constraint.transitions, 1.0 / (temperature * sampling.temperature))
        drawn = infer(*where, other.statistics, uniforms)
        sampled_ids = other.choose(drawn.classes, drawn.shares)
    embeddings = canvas.expected(found.marginals) if soft else None
    return ReadOut(argmax_ids, sampled_ids, torch.from_numpy(found.entropy), embeddings, found.log_z)


class _Canvas:
    """Statistics of a canvas's classes at one temperature, and what is needed to go from classes to tokens.

    Args:
        hidden, table: as in :func:`read_out`.
        transitions: the grammar.
        inverse: of the temperature.
    """

    def __init__(self, hidden: Tensor, table: Table, transitions: Transitions, inverse: float):
        self._hidden = hidden
        self._table = table
        self._transitions = transitions
        self._inverse = inverse
        self._device = hidden.device
        self._bulk = {c: _Running(len(hidden), self._device) for c in transitions.bulk}
        few = self._there(transitions.few)
        ascending, place = few.sort()
        parts = []
        for start, rows in table.chunks():
            tempered = table.logits(hidden, rows) * inverse
            stop = start + len(rows)
            inside = (ascending >= start) & (ascending < stop)
            parts.append(tempered[:, ascending[inside] - start])
            for c, running in self._bulk.items():
                columns = self._there(_within(transitions.bulk[c], start, stop))
                running.add(columns, tempered if len(columns) == len(rows) else tempered[:, columns - start])
        self._few = torch.empty(len(hidden), len(few), device=self._device)
        self._few[:, place] = torch.cat(parts, dim=-1)
        self.statistics = self._statistics()

    def _there(self, values: Integers | Floats) -> Tensor:
        """On the device."""
        return torch.from_numpy(values).to(self._device)

    def _statistics(self) -> ClassStatistics:
        t = self._transitions
        found = walks.statistics(self._few.cpu().numpy(), t.few, t.few_begin)
        for c, running in self._bulk.items():
            for whole, part in zip(found, running.statistics(), strict=True):
                whole[:, c] = part.cpu().numpy()
        return ClassStatistics(*found)

    def choose(self, classes: Integers, shares: Floats) -> Tensor:
        """Tokens ``[rows]`` int64 of classes ``[rows]``, each by a share ``[rows]`` in [0, 1) of its class's weight."""
        t = self._transitions
        tokens = torch.empty(len(classes), dtype=torch.int64, device=self._device)
        every = self._there(shares)
        for c in sorted(set(classes.tolist())):
            rows = self._there(np.flatnonzero(classes == c))
            share = every[rows]
            if c not in self._bulk:
                columns = slice(t.few_begin[c], t.few_begin[c + 1])
                index, _ = _pick(_weights(self._few[rows, columns]), share)
                tokens[rows] = self._there(t.few[columns])[index]
                continue
            part, share = _pick(self._bulk[c].weights(rows), share)
            for number in sorted(set(part.tolist())):
                here = part == number
                ids = self._bulk[c].tokens[number]
                products = self._table.logits(self._hidden[rows[here]], self._table.rows[ids]) * self._inverse
                index, _ = _pick(_weights(products), share[here])
                tokens[rows[here]] = ids[index]
        return tokens.cpu()

    def expected(self, marginals: Floats) -> Tensor:
        """Expected rows of the embedding table ``[rows, hidden]``, in the dtype of the hidden states."""
        t = self._transitions
        weights = np.where(marginals > 0, marginals, 1.0)
        # times exp(logit) it is the probability of a token
        factor = self._there(np.where(marginals > 0, np.log(weights) - self.statistics.log_sum, -np.inf)).float()
        owner = self._there(t.automaton.class_of[t.few].astype(np.int64))
        few = torch.exp(self._few + factor[:, owner]).to(self._hidden.dtype)
        expected = linear(few, self._table.rows[self._there(t.few)].T).float()
        for c in self._bulk:
            rows = self._there(np.flatnonzero(marginals[:, c] > _NOTHING))
            if not len(rows):
                continue
            hidden = self._hidden[rows]
            total = torch.zeros(hidden.shape, device=self._device)
            for start, chunk in self._table.chunks():
                columns = self._there(_within(t.bulk[c], start, start + len(chunk)))
                if len(columns):
                    part = chunk if len(columns) == len(chunk) else chunk[columns - start]
                    exponentials = torch.exp(self._table.logits(hidden, part) * self._inverse + factor[rows, c, None])
                    total += linear(exponentials.to(self._hidden.dtype), part.T)
            expected[rows] += total
        return expected.to(self._hidden.dtype)


class _Running:
    """Online statistics of one class's logits, chunk by chunk, relative to its own highest."""

    def __init__(self, rows: int, device: torch.device):
        self.tokens: list[Tensor] = []
        self._tops: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._highest = torch.full((rows,), float("-inf"), dtype=torch.float64, device=device)
        self._argmax = torch.zeros(rows, dtype=torch.int64, device=device)
        self._total = torch.zeros_like(self._highest)
        self._below = torch.zeros_like(self._highest)

    def add(self, tokens: Tensor, logits: Tensor) -> None:
        """Take the tempered logits ``[rows, tokens]`` of some tokens."""
        if not len(tokens):
            return
        top, where = logits.max(-1)
        under = top[:, None] - logits
        exponentials = torch.exp(-under)
        total = exponentials.sum(-1, dtype=torch.float64)
        below = exponentials.mul_(under).sum(-1, dtype=torch.float64)
        self.tokens.append(tokens)
        self._tops.append(top)
        self._sums.append(total)
        top = top.double()
        highest = torch.maximum(self._highest, top)
        fade, fresh = torch.exp(self._highest - highest), torch.exp(top - highest)
        moved = torch.where(self._total > 0, highest - self._highest, 0.0)
        self._below = fade * (self._below + self._total * moved) + fresh * (below + total * (highest - top))
        self._total = fade * self._total + fresh * total
        self._argmax = torch.where(top > self._highest, tokens[where], self._argmax)
        self._highest = highest

    def statistics(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log sum, highest, its token and the entropy, each ``[rows]``."""
        log = self._total.log()
        return self._highest + log, self._highest, self._argmax, log + self._below / self._total

    def weights(self, rows: Tensor) -> Tensor:
        """Of each chunk ``[rows, chunks]`` float64, relative to the heaviest."""
        tops = torch.stack([top[rows] for top in self._tops], dim=-1).double()
        sums = torch.stack([total[rows] for total in self._sums], dim=-1)
        return torch.exp(tops - tops.max(-1, keepdim=True).values) * sums


def _within(tokens: Integers, start: int, stop: int) -> Integers:
    """Those of ascending ids from ``start`` up to ``stop``."""
    low, high = np.searchsorted(tokens, (start, stop))
    return tokens[low:high]


def _weights(logits: Tensor) -> Tensor:
    """Exponentials ``[rows, tokens]`` float64, relative to each row's highest."""
    return torch.exp((logits - logits.max(-1, keepdim=True).values).double())


def _pick(weights: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The first index whose cumulative weight exceeds the share of all, and the share of that index's own weight."""
    cumulative = weights.cumsum(-1)
    target = shares * cumulative[:, -1]
    index = torch.searchsorted(cumulative, target[:, None], right=True).clamp(max=weights.shape[1] - 1)
    inside = weights.gather(-1, index)
    share = (target[:, None] - (cumulative.gather(-1, index) - inside)) / inside
    return index[:, 0], share[:, 0].clamp(0, 1 - 2**-53)
