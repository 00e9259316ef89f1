"""How far an answer has come in its grammar."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_diffgemma.errors import require
from trtllm_build.contract import Constraint
from trtllm_build.grammar.transitions import Transitions


class Form:
    """The grammar of one request, canvas after canvas.

    Args:
        transitions: the grammar.
        max_tokens: of the request.

    Raises:
        FieldError: when no answer of the grammar has so few tokens.
    """

    def __init__(self, transitions: Transitions, max_tokens: int):
        self._transitions = transitions
        self._state = transitions.automaton.start
        self._left = max_tokens
        fewest = int(transitions.automaton.distance[self._state])
        require(
            fewest <= max_tokens,
            field="max_tokens",
            value=max_tokens,
            allowed=f"at least {fewest}, the tokens of the shortest answer of this grammar",
            fix=f"pass max_tokens={fewest} or more",
        )

    def constraint(self, canvas: int) -> Constraint:
        """What binds the next canvas, of ``canvas`` tokens."""
        rows = min(canvas, self._left)
        return Constraint(self._transitions, self._state, rows, self._left - rows)

    def commit(self, tokens: Sequence[int]) -> None:
        """Go on behind a finished canvas; tokens that nobody gets are left out."""
        tokens = tokens[: self._left]
        self._state = self._transitions.advance(self._state, tokens)
        self._left -= len(tokens)

    @property
    def complete(self) -> bool:
        """Whether what was committed is an answer of the grammar."""
        return bool(self._transitions.automaton.accepting[self._state])
