"""What a request rules about its canvases: pinned tokens, allowed sets, and how early it may end."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from nemo_diffgemma.diffusion.draws import uniform_to_token
from nemo_diffgemma.errors import require
from trtllm_build.contract import TokenChoice
from trtllm_build.runtime.request import Request

_Group = tuple[tuple[int, ...] | None, bool]


class Rules:
    """The controls of one request, by canvas.

    Args:
        request: what was asked.
        canvas: tokens per canvas.
        vocab_size: token ids run from 0 to this, exclusive.
        end_ids: tokens that end the answer.

    Raises:
        FieldError: when a token id is not in the vocabulary, or a position is left without any.
    """

    def __init__(self, request: Request, canvas: int, vocab_size: int, end_ids: Collection[int]):
        self._request = request
        self._canvas = canvas
        self._vocab_size = vocab_size
        self._end_ids = frozenset(end_ids)
        # an answer that ended before a pinned token would lose it
        self._earliest_end = max((request.min_tokens, *(p + 1 for p in request.pinned)))
        self._check_ids("stop_token_ids", request.stop_token_ids)
        self._check_ids("seed_canvas", request.seed_canvas)
        self._check_ids("pinned", request.pinned.values())
        self._check_ids("allowed", request.allowed or ())
        for position, ids in request.allowed_at.items():
            self._check_ids(f"allowed_at[{position}]", ids)
        early = [p for p, token in request.pinned.items() if token in self._end_ids and p + 1 < self._earliest_end]
        require(
            not early,
            field="pinned",
            value=f"token {request.pinned[early[0]]} at position {early[0]}" if early else "",
            allowed="a token that ends the answer at the last pinned position only",
            fix="leave out the pins behind it",
        )
        self._free = not (request.pinned or request.allowed or request.allowed_at or self._earliest_end)
        self._sets: dict[_Group, Tensor] = {}
        for position in range(request.max_tokens if not self._free else 0):
            self._allowed(position)

    def choices(self, index: int) -> list[TokenChoice] | None:
        """What each position of canvas ``index`` chooses from; None when all choose from the whole vocabulary."""
        if self._free:
            return None
        start = index * self._canvas
        pinned = [row for row in range(self._canvas) if start + row in self._request.pinned]
        groups: dict[_Group, list[int]] = {}
        for row in sorted(set(range(self._canvas)) - set(pinned)):
            groups.setdefault(self._group(start + row), []).append(row)
        found = []
        for (_, early), rows in groups.items():
            allowed = self._allowed(start + rows[0])
            excluded = tuple(sorted(self._end_ids)) if early and allowed is None else ()
            found.append(TokenChoice(torch.tensor(rows), allowed=allowed, excluded=excluded))
        if list(groups) == [(None, False)] and not pinned:
            return None
        if pinned:
            fixed = torch.tensor([self._request.pinned[start + row] for row in pinned])
            found.append(TokenChoice(torch.tensor(pinned), fixed=fixed))
        return found

    def start(self, index: int, choices: Sequence[TokenChoice] | None, uniforms: Tensor) -> Tensor:
        """Token ids ``[canvas]`` that canvas ``index`` starts from: the request's own, else noise."""
        ids = self.noise(choices, uniforms)
        own = self._request.seed_canvas[index * self._canvas : (index + 1) * self._canvas]
        ids[: len(own)] = torch.tensor(own, dtype=torch.int64)
        return _pinned(choices, ids)

    def noise(self, choices: Sequence[TokenChoice] | None, uniforms: Tensor) -> Tensor:
        """Uniformly random tokens ``[canvas]`` from draws in [0, 1), and pinned ones.

        Of the whole vocabulary, whatever a position allows: that is what the model has learnt to see as noise.
        """
        return _pinned(choices, uniform_to_token(uniforms, self._vocab_size))

    def _group(self, position: int) -> _Group:
        """The ids that a position is given, and whether those that end the answer are ruled out there."""
        early = position < self._earliest_end and bool(self._end_ids)
        return self._request.allowed_at.get(position, self._request.allowed), early

    def _allowed(self, position: int) -> Tensor | None:
        """Ascending ids allowed at a position, without those that would end the answer too early."""
        ids, early = group = self._group(position)
        if ids is None or position in self._request.pinned:
            return None
        if group not in self._sets:
            left = set(ids) - self._end_ids if early else set(ids)
            require(
                len(left) > 0,
                field=f"allowed_at[{position}]" if position in self._request.allowed_at else "allowed",
                value=f"only tokens that end the answer at position {position}",
                allowed=f"another token before position {self._earliest_end} (min_tokens, pinned)",
                fix="allow one more token there",
            )
            self._sets[group] = torch.tensor(sorted(left))
        return self._sets[group]

    def _check_ids(self, name: str, ids: Collection[int]) -> None:
        wrong = [i for i in ids if not (isinstance(i, int) and 0 <= i < self._vocab_size)]
        allowed = f"token ids from 0 to {self._vocab_size - 1}"
        require(not wrong, field=name, value=wrong[:1], allowed=allowed, fix="use this engine's tokenizer")


def _pinned(choices: Sequence[TokenChoice] | None, ids: Tensor) -> Tensor:
    """``ids [canvas]`` with pinned tokens in their places."""
    for choice in choices or ():
        if choice.fixed is not None:
            ids[choice.rows] = choice.fixed
    return ids
