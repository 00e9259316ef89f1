"""The loops of inference, compiled by numba: position after position over pairs of states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

_NOTHING = -np.inf
_inner = njit(nogil=True, error_model="numpy")


def _compiled(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function when this module is imported: seconds once, then kept beside it or in the user's cache."""

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return njit(signature, nogil=True, error_model="numpy", cache=True)(function)
        except RuntimeError:  # no place that can be written to
            return njit(signature, nogil=True, error_model="numpy")(function)

    return compiled


@_inner
def _add(a, b):
    """log(exp(a) + exp(b))."""
    high, low = max(a, b), min(a, b)
    return high if low == _NOTHING else high + np.log1p(np.exp(low - high))


@_inner
def _sets(begin, members, log_sum, highest, argmax):
    """Of each set of classes at each position: log sum, highest logit and its token."""
    rows, sets = len(log_sum), len(begin) - 1
    sums = np.full((rows, sets), _NOTHING)
    tops = np.full((rows, sets), _NOTHING)
    best = np.zeros((rows, sets), np.int64)
    for i in range(rows):
        for s in range(sets):
            top = _NOTHING
            for m in range(begin[s], begin[s + 1]):
                c = members[m]
                top = max(top, log_sum[i, c])
                # of equal logits the lowest token, as everywhere
                if highest[i, c] > tops[i, s] or (highest[i, c] == tops[i, s] and argmax[i, c] < best[i, s]):
                    tops[i, s] = highest[i, c]
                    best[i, s] = argmax[i, c]
            if top == _NOTHING:
                continue
            total = 0.0
            for m in range(begin[s], begin[s + 1]):
                total += np.exp(log_sum[i, members[m]] - top)
            sums[i, s] = top + np.log(total)
    return sums, tops, best


@_inner
def _forward(first, next_, label, sums, here, there):
    for q in range(len(here)):
        if here[q] != _NOTHING:
            for p in range(first[q], first[q + 1]):
                there[next_[p]] = _add(there[next_[p]], here[q] + sums[label[p]])


@_inner
def _spread(begin, members, log_sum, sums, weights, marginals):
    """Weights of sets to their classes; together they weigh 1, to the last bit that a division gives."""
    whole = 0.0
    for s in range(len(weights)):
        if weights[s] > 0:
            for m in range(begin[s], begin[s + 1]):
                c = members[m]
                marginals[c] += weights[s] * np.exp(log_sum[c] - sums[s])
    for c in range(len(marginals)):
        whole += marginals[c]
    for c in range(len(marginals)):
        marginals[c] /= whole


@_inner
def _follow(first, next_, label, tops, best, viterbi, start, ids):
    q = start
    for i in range(len(ids)):
        chosen, score = -1, _NOTHING
        for p in range(first[q], first[q + 1]):
            value = tops[i, label[p]] + viterbi[i + 1, next_[p]]
            better = value > score or (value == score and best[i, label[p]] < best[i, label[chosen]])
            if value != _NOTHING and (chosen < 0 or better):
                chosen, score = p, value
        ids[i] = best[i, label[chosen]]
        q = next_[chosen]


@_inner
def _draw(first, next_, label, begin, members, log_sum, sums, backward, start, draws, drawn, shares):
    """State by state, and each class by what the draw left; what it then leaves is for the token."""
    q = start
    for i in range(len(draws)):
        top = _NOTHING
        for p in range(first[q], first[q + 1]):
            top = max(top, sums[i, label[p]] + backward[i + 1, next_[p]])
        total = 0.0
        for p in range(first[q], first[q + 1]):
            total += np.exp(sums[i, label[p]] + backward[i + 1, next_[p]] - top)
        target = draws[i] * total
        chosen, inside = -1, 1.0
        for p in range(first[q], first[q + 1]):
            weight = np.exp(sums[i, label[p]] + backward[i + 1, next_[p]] - top)
            if weight > 0:
                if chosen >= 0 and target < inside:
                    break
                if chosen >= 0:
                    target -= inside
                chosen, inside = p, weight
        share = min(max(target / inside, 0.0), 1 - 2.0**-53)
        s = label[chosen]
        target = share
        kind, inside = -1, 1.0
        for m in range(begin[s], begin[s + 1]):
            weight = np.exp(log_sum[i, members[m]] - sums[i, s])
            if weight > 0:
                if kind >= 0 and target < inside:
                    break
                if kind >= 0:
                    target -= inside
                kind, inside = members[m], weight
        drawn[i] = kind
        shares[i] = min(max(target / inside, 0.0), 1 - 2.0**-53)
        q = next_[chosen]


@_compiled(
    "Tuple((f8, i8[::1], i8[::1], f8[::1], f8[:, ::1]))"
    "(i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], f8[:, ::1], f8[:, ::1], i8[:, ::1], i8, f8[::1], f8[::1])"
)
def walk(first, next_, label, begin, members, log_sum, highest, argmax, start, last, draws):
    """Forward, backward and Viterbi passes, and one sample.

    Args:
        first, next_, label, begin, members: see :class:`trtllm_build.grammar.transitions.Transitions`.
        log_sum, highest, argmax: see :class:`trtllm_build.grammar.inference.ClassStatistics`.
        start: state before the first position.
        last: ``[states]`` float64, log of what ending in each state weighs.
        draws: ``[rows]`` float64 uniforms.

    Returns:
        Log of the sum over all accepted texts, their likeliest, the classes of one drawn at random with what the draws
        leave, and the probability of each class at each position; the first is minus infinity where there is no text,
        and the others then mean nothing.
    """
    rows, classes = log_sum.shape
    states, sets = len(first) - 1, len(begin) - 1
    sums, tops, best = _sets(begin, members, log_sum, highest, argmax)

    forward = np.full((rows + 1, states), _NOTHING)
    forward[0, start] = 0.0
    for i in range(rows):
        _forward(first, next_, label, sums[i], forward[i], forward[i + 1])

    log_z = _NOTHING
    for q in range(states):
        log_z = _add(log_z, forward[rows, q] + last[q])
    ids = np.zeros(rows, np.int64)
    drawn = np.zeros(rows, np.int64)
    shares = np.zeros(rows, np.float64)
    marginals = np.zeros((rows, classes))
    if log_z == _NOTHING:
        return log_z, ids, drawn, shares, marginals

    backward = np.full((rows + 1, states), _NOTHING)
    viterbi = np.full((rows + 1, states), _NOTHING)
    backward[rows] = last
    viterbi[rows] = last
    for i in range(rows - 1, -1, -1):
        weights = np.zeros(sets)
        for q in range(states):
            if forward[i, q] == _NOTHING:
                continue
            top = _NOTHING
            for p in range(first[q], first[q + 1]):
                value = sums[i, label[p]] + backward[i + 1, next_[p]]
                top = max(top, value)
                score = tops[i, label[p]] + viterbi[i + 1, next_[p]]
                viterbi[i, q] = max(viterbi[i, q], score)
            if top == _NOTHING:
                continue
            total = 0.0
            for p in range(first[q], first[q + 1]):
                total += np.exp(sums[i, label[p]] + backward[i + 1, next_[p]] - top)
            backward[i, q] = top + np.log(total)
            for p in range(first[q], first[q + 1]):
                value = sums[i, label[p]] + backward[i + 1, next_[p]]
                weights[label[p]] += np.exp(forward[i, q] + value - log_z)
        _spread(begin, members, log_sum[i], sums[i], weights, marginals[i])

    _follow(first, next_, label, tops, best, viterbi, start, ids)
    _draw(first, next_, label, begin, members, log_sum, sums, backward, start, draws, drawn, shares)
    return log_z, ids, drawn, shares, marginals


@_compiled("Tuple((f8[:, ::1], f8[:, ::1], i8[:, ::1], f8[:, ::1]))(f4[:, ::1], i8[::1], i8[::1])")
def statistics(logits, tokens, begin):
    """Statistics of classes whose logits are all there.

    Args:
        logits: ``[rows, tokens]`` float32, tempered.
        tokens: ``[tokens]`` int64, their ids, by class and then ascending.
        begin: ``[classes + 1]`` int64: those of class c are ``begin[c]`` up to ``begin[c + 1]``.

    Returns:
        Log sums, highest logits, their tokens and entropies, each ``[rows, classes]``, of classes without tokens minus
        infinity and nothing.
    """
    rows, classes = len(logits), len(begin) - 1
    log_sum = np.full((rows, classes), _NOTHING)
    highest = np.full((rows, classes), _NOTHING)
    argmax = np.zeros((rows, classes), np.int64)
    entropy = np.zeros((rows, classes))
    for i in range(rows):
        for c in range(classes):
            if begin[c] == begin[c + 1]:
                continue
            top, where = _NOTHING, begin[c]
            for k in range(begin[c], begin[c + 1]):
                if logits[i, k] > top:
                    top, where = np.float64(logits[i, k]), k
            total, below = 0.0, 0.0
            for k in range(begin[c], begin[c + 1]):
                under = top - np.float64(logits[i, k])
                weight = np.exp(-under)
                total += weight
                below += weight * under
            log_sum[i, c] = top + np.log(total)
            highest[i, c] = top
            argmax[i, c] = tokens[where]
            entropy[i, c] = np.log(total) + below / total
    return log_sum, highest, argmax, entropy
