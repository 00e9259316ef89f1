"""From hidden states to tokens: one pass over the vocabulary, the way attention is computed without its score matrix.

Hidden states are the queries, the embedding table is keys and values. A chunk of the table gives its logits, they
update running statistics and the running soft embedding, and are gone: nothing of vocabulary width outlives a chunk
(online softmax, Milakov and Gimelshein, arXiv 1805.02867).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from trtllm_build.contract import SUB, Constraint, ReadOut, TokenChoice
from trtllm_build.network import nucleus
from trtllm_build.network.linear import linear
from trtllm_build.network.pieces import Piece
from trtllm_build.sampling import PLAIN, Sampling

# Tokens per chunk: its logits and the table's rows stay in the cache of one CPU core complex.
CHUNK = 4096
_LOWEST = -1e30  # below every logit, and still a number: its difference to itself is 0
_NOTHING = 1e-30


class Vocabulary:
    """The tied embedding as output projection.

    Args:
        embedding: ``[vocab, hidden]``.
        cap: soft-cap of the logits.
        scale: of embeddings, sqrt(hidden).
        statistics: :func:`trtllm_build.network.pieces.statistics`, eager or compiled.
    """

    def __init__(self, embedding: Tensor, cap: float, scale: float, statistics: Piece):
        self._embedding = embedding
        self._cap = cap
        self._scale = torch.tensor(scale, dtype=embedding.dtype)
        self._statistics = statistics

    def logits(self, hidden: Tensor) -> Tensor:
        """For checking: soft-capped logits ``[..., vocab]`` float32 of normed hidden states ``[..., hidden]``."""
        return self._logits_of(hidden, self._embedding)

    def _logits_of(self, hidden: Tensor, table: Tensor) -> Tensor:
        """Soft-capped logits ``[..., tokens]`` float32 of some rows of the table."""
        return torch.tanh(linear(hidden, table).float() / self._cap) * self._cap

    def read_labels(self, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of some tokens among all at temperature 1, and the likeliest token of all.

        Args:
            hidden: normed hidden states ``[rows, hidden]``.
            ids: ascending token ids ``[labels]``.

        Returns:
            ``[rows, labels]`` float64, nats, and ``[rows]`` int64.
        """
        best, argmax = torch.full((len(hidden),), float("-inf")), torch.zeros(len(hidden), dtype=torch.int64)
        total = torch.full((len(hidden),), float("-inf"), dtype=torch.float64)
        wanted = []
        for start, table in self._chunks(None):
            logits = self._logits_of(hidden, table)
            top, where = logits.max(-1)
            argmax, best = torch.where(top > best, start + where, argmax), torch.maximum(best, top)
            total = torch.logaddexp(total, logits.double().logsumexp(-1))
            wanted.append(logits[:, ids[(ids >= start) & (ids < start + len(table))] - start])
        return torch.cat(wanted, dim=-1).double() - total[:, None], argmax

    def soft_embeddings(self, tempered: Tensor) -> Tensor:
        """For checking: ``softmax(tempered) @ embedding * scale``, ``[..., vocab] -> [..., hidden]``."""
        probabilities = torch.softmax(tempered, dim=-1, dtype=torch.float32).to(self._embedding.dtype)
        return torch.matmul(probabilities, self._embedding) * self._scale

    def read_out(
        self,
        hidden: Tensor,
        temperature: float,
        draws: Tensor,
        soft: bool,
        choices: Sequence[TokenChoice] | None = None,
        sampling: Sampling = PLAIN,
        constraint: Constraint | None = None,
    ) -> ReadOut:
        """Argmax, sample, entropy and next soft embedding at every position of one canvas.

        Args:
            hidden: normed hidden states ``[canvas, hidden]``.
            temperature: of this step.
            draws: ``[canvas]`` uniforms in [0, 1).
            soft: whether soft embeddings are wanted.
            choices: every position in exactly one; None: all choose from the whole vocabulary.
            sampling: how tokens are drawn; another temperature takes one more pass over the table, a nucleus four
                for rows that are not certain enough to need none.
            constraint: a grammar; without ``choices``.
        """
        if constraint is not None:
            rows = constraint.rows
            bound = self._bound(hidden[:rows], temperature, draws[:rows], soft, constraint, sampling)
            if rows == len(hidden):
                return bound
            free = self._part(hidden[rows:], temperature, draws[rows:], soft, None, (), sampling)
            return replace(_joined([bound, free]), log_z=bound.log_z)
        if choices is None:
            return self._part(hidden, temperature, draws, soft, None, (), sampling)
        parts = [
            self._certain(c.fixed, soft)
            if c.fixed is not None
            else self._part(hidden[c.rows], temperature, draws[c.rows], soft, c.allowed, c.excluded, sampling)
            for c in choices
        ]
        return _joined(parts, torch.cat([c.rows for c in choices]).argsort())

    def _bound(
        self, hidden: Tensor, temperature: float, draws: Tensor, soft: bool, constraint: Constraint, sampling: Sampling
    ) -> ReadOut:
        """Positions that a grammar binds."""
        from trtllm_build.network import constrained  # numba, which takes 100 MB, is for those who need it

        table = constrained.Table(self._embedding, CHUNK, self._logits_of)
        found = constrained.read_out(hidden, table, temperature, draws, soft, constraint, sampling)
        embeddings = found.soft_embeddings
        return found if embeddings is None else replace(found, soft_embeddings=embeddings * self._scale)

    def _certain(self, ids: Tensor, soft: bool) -> ReadOut:
        """A distribution with all its weight on one token."""
        return ReadOut(ids, ids, torch.zeros(len(ids)), self._embedding[ids] * self._scale if soft else None)

    def _part(
        self,
        hidden: Tensor,
        temperature: float,
        draws: Tensor,
        soft: bool,
        allowed: Tensor | None,
        excluded: Sequence[int],
        sampling: Sampling,
    ) -> ReadOut:
        """Positions that choose from the same tokens."""
        found = self._pass(hidden, temperature, draws, soft, allowed, excluded)
        if sampling.plain:
            return found
        if sampling.certain(temperature):
            return replace(found, sampled_ids=found.argmax_ids)
        temperature *= sampling.temperature
        if sampling.top_p == 1:
            sampled = self._pass(hidden, temperature, draws, False, allowed, excluded).sampled_ids
            return replace(found, sampled_ids=sampled)

        rows = nucleus.undecided(found.entropy, sampling)
        if not len(rows):
            return replace(found, sampled_ids=found.argmax_ids)
        hidden, likeliest = hidden[rows], found.argmax_ids[rows]

        def chunks() -> Iterator[tuple[int, Tensor]]:
            for start, table in self._chunks(allowed):
                products = self._products(hidden, table, start, allowed, excluded)
                yield start, products.flatten(1)[:, : len(table)].float()

        highest = (hidden.float() * self._embedding[likeliest].float()).sum(-1)
        if allowed is not None:
            likeliest = torch.searchsorted(allowed, likeliest)
        drawn = nucleus.draw(chunks, 1.0 / temperature, self._cap, likeliest, highest, sampling.top_p, draws[rows])
        sampled = found.argmax_ids.clone()
        sampled[rows] = drawn if allowed is None else allowed[drawn]
        return replace(found, sampled_ids=sampled)

    def _pass(
        self,
        hidden: Tensor,
        temperature: float,
        draws: Tensor,
        soft: bool,
        allowed: Tensor | None,
        excluded: Sequence[int],
    ) -> ReadOut:
        rows = len(hidden)
        inverse = torch.tensor(1.0 / temperature)
        highest = torch.full((rows,), _LOWEST)
        best, argmax = torch.full((rows,), float("-inf")), torch.zeros(rows, dtype=torch.int64)
        expected = torch.zeros(rows, hidden.shape[1])
        total, weighted = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64)
        sums: list[tuple[Tensor, Tensor]] = []
        for start, table in self._chunks(allowed):
            products = self._products(hidden, table, start, allowed, excluded)
            exponentials, top, where, new, subs, below = self._statistics(products, inverse, highest)
            argmax = torch.where(top > best, start + where, argmax)
            best = torch.maximum(best, top)
            fade = torch.exp(highest - new)
            wide = fade.double()
            # entropy from how far logits are below the highest: no difference of large numbers
            weighted = wide * (weighted + total * (new - highest)) + below
            total = wide * total + subs.sum(-1, dtype=torch.float64)
            if soft:
                part = linear(exponentials.flatten(1)[:, : len(table)], table.T)
                expected.mul_(fade[:, None]).add_(part)
            sums.append((new, subs))
            highest = new
        sampled = self._sample(hidden, inverse, highest, sums, draws, allowed, excluded)
        entropy = (total.log() + weighted / total).float()
        embeddings = (expected / total[:, None].float()).to(hidden.dtype) * self._scale if soft else None
        if allowed is not None:
            argmax, sampled = allowed[argmax], allowed[sampled]
        return ReadOut(argmax, sampled, entropy, embeddings)

    def _chunks(self, allowed: Tensor | None) -> Iterator[tuple[int, Tensor]]:
        """First index and rows of the table, a chunk at a time."""
        size = len(self._embedding) if allowed is None else len(allowed)
        for start in range(0, size, CHUNK):
            yield start, self._rows(start, min(start + CHUNK, size), allowed)

    def _rows(self, start: int, stop: int, allowed: Tensor | None) -> Tensor:
        return self._embedding[start:stop] if allowed is None else self._embedding[allowed[start:stop]]

    def _products(
        self, hidden: Tensor, table: Tensor, start: int, allowed: Tensor | None, excluded: Sequence[int]
    ) -> Tensor:
        """Un-capped logits ``[rows, subs, SUB]``; minus infinity for what is excluded and past the table's end."""
        products = linear(hidden, table)
        for token in excluded:
            index = _index(token, allowed)
            if index is not None and start <= index < start + len(table):
                products[:, index - start] = float("-inf")
        missing = -len(table) % SUB
        if missing:
            products = F.pad(products, (0, missing), value=float("-inf"))
        return products.view(len(hidden), -1, SUB)

    def _sample(
        self,
        hidden: Tensor,
        inverse: Tensor,
        highest: Tensor,
        sums: Sequence[tuple[Tensor, Tensor]],
        draws: Tensor,
        allowed: Tensor | None,
        excluded: Sequence[int],
    ) -> Tensor:
        """The first index whose cumulative probability exceeds the draw: first its sub-chunk, then within it.

        The logits of that sub-chunk are computed again; the draw's place between its bounds is carried over, so that
        rounding cannot push a draw out of it.
        """
        subs = torch.cat([part.double() * torch.exp(new - highest).double()[:, None] for new, part in sums], dim=-1)
        # what weighs nothing beside the highest logit's 1 may weigh nothing at all when it is computed again
        subs = torch.where(subs < _NOTHING, 0.0, subs)
        cumulative = subs.cumsum(-1)
        target = draws.double() * cumulative[:, -1]
        which = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
        inside = subs.gather(-1, which[:, None])
        share = (target[:, None] - (cumulative.gather(-1, which[:, None]) - inside)) / inside
        share = share.clamp(0, 1 - 2**-53)
        size = len(self._embedding) if allowed is None else len(allowed)
        exponentials = torch.empty(len(hidden), SUB, dtype=torch.float64)
        for sub in sorted(set(which.tolist())):
            rows = (which == sub).nonzero()[:, 0]
            table = self._rows(sub * SUB, min((sub + 1) * SUB, size), allowed)
            products = self._products(hidden[rows], table, sub * SUB, allowed, excluded)
            exponentials[rows] = self._statistics(products, inverse, highest[rows])[0][:, 0].double()
        within = exponentials.cumsum(-1)
        return which * SUB + torch.searchsorted(within, share * within[:, -1:], right=True)[:, 0]


def _index(token: int, allowed: Tensor | None) -> int | None:
    """Where a token is in the table or among the allowed ones."""
    if allowed is None:
        return token
    found = int(torch.searchsorted(allowed, token))
    return found if found < len(allowed) and int(allowed[found]) == token else None


def _joined(parts: Sequence[ReadOut], order: Tensor | None = None) -> ReadOut:
    """Parts of a canvas as one, their rows in order."""
    embeddings = [p.soft_embeddings for p in parts if p.soft_embeddings is not None]
    every = slice(None) if order is None else order
    return ReadOut(
        argmax_ids=torch.cat([p.argmax_ids for p in parts])[every],
        sampled_ids=torch.cat([p.sampled_ids for p in parts])[every],
        entropy=torch.cat([p.entropy for p in parts])[every],
        soft_embeddings=torch.cat(embeddings)[every] if embeddings else None,
    )
