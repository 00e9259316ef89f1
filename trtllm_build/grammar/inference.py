"""Exact inference in a canvas that a grammar binds.

Positions of a canvas are independent, ``p_i(v)``; those texts of it that the automaton accepts are weighed as

    P(x) = 1 / Z  prod_i p_i(x_i)  [x is accepted]

which is a hidden Markov model: its likeliest text is the Viterbi path, a sample of it and the weight of each class of
tokens at each position follow from the forward and backward sums (Rabiner 1989, sections III.A and III.B). All in the
log domain, in float64: logits span 150 nats at the schedule's lowest temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trtllm_build.grammar import walks
from trtllm_build.grammar.transitions import Transitions

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ClassStatistics:
    """What a canvas says of every class of tokens, at one temperature.

    Args:
        log_sum: ``[rows, classes]`` float64, log of the summed exponentials of the tempered logits of its tokens;
            minus infinity for a class without any.
        highest: ``[rows, classes]`` float64, the highest of these logits.
        argmax: ``[rows, classes]`` int64, its token; the lowest id of several.
        entropy: ``[rows, classes]`` float64, nats, of the distribution within the class.
    """

    log_sum: Floats
    highest: Floats
    argmax: Integers
    entropy: Floats


@dataclass(frozen=True)
class Inferred:
    """What of a canvas follows from its classes.

    Args:
        argmax_ids: ``[rows]`` int64, the likeliest text.
        classes: ``[rows]`` int64, of a text drawn at random.
        shares: ``[rows]`` float64 in [0, 1), what each draw leaves to choose the token within its class.
        marginals: ``[rows, classes]`` float64, probability of each class at each position; a row's sum is 1.
        entropy: ``[rows]`` float32, nats, of the marginal distribution over tokens.
        log_z: nats, log-probability that the text is accepted when positions choose by themselves.
    """

    argmax_ids: Integers
    classes: Integers
    shares: Floats
    marginals: Floats
    entropy: NDArray[np.float32]
    log_z: float


def infer(transitions: Transitions, state: int, remaining: int, statistics: ClassStatistics, draws: Floats) -> Inferred:
    """The likeliest text, a text drawn at random, and the marginal of every class at every position.

    Args:
        transitions: the grammar.
        state: before the first position.
        remaining: tokens that may follow the last position; texts that cannot be completed with as many weigh nothing.
        statistics: of the canvas.
        draws: ``[rows]`` uniforms in [0, 1).

    Raises:
        ValueError: when no text of this length is accepted.
    """
    t = transitions
    last = np.where(t.automaton.distance <= remaining, 0.0, -np.inf)
    arguments = (t.first, t.next, t.label, t.begin, t.members)
    walked = walks.walk(*arguments, statistics.log_sum, statistics.highest, statistics.argmax, state, last, draws)
    log_z, argmax_ids, classes, shares, marginals = walked
    if log_z == -np.inf:
        raise ValueError(f"no text of {len(draws)} tokens and {remaining} more leads from state {state} to an end")
    weighed = np.where(marginals > 0, marginals, 1.0)
    entropy = (marginals * statistics.entropy - weighed * np.log(weighed)).sum(-1)
    alone = _log_sum(statistics.log_sum).sum()
    return Inferred(argmax_ids, classes, shares, marginals, entropy.astype(np.float32), min(log_z - alone, 0.0))


def _log_sum(values: Floats) -> Floats:
    """Of the last dimension."""
    top = values.max(-1, keepdims=True)
    result: Floats = (top + np.log(np.exp(values - top).sum(-1, keepdims=True)))[..., 0]
    return result
