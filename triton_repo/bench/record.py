"""What the load generator remembers of a request."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

# A finish reason with which the server answered, rather than ended, a request.
ANSWERED = ("stop", "length")


@dataclass(frozen=True)
class BlockSeen:
    """A committed block, as it reached the client.

    Args:
        at: seconds since the load began.
        tokens: tokens in it.
        steps: denoising steps that it took.
    """

    at: float
    tokens: int
    steps: int


@dataclass(frozen=True)
class RequestRecord:
    """One request; times in seconds since the load began.

    Args:
        index: its number in the load, from 0.
        due: when it was to be sent: its arrival in open loop, the end of the one before it in closed loop.
        sent: when it was.
        ended: when its last response, or its error, had come.
        outcome: the finish reason, or the kind of error: ``refused``, ``unavailable``, ``unreachable``, ``timed_out``,
            ``cancelled``, ``failed``.
        blocks: what came.
        message: of the error; empty without.
    """

    index: int
    due: float
    sent: float
    ended: float
    outcome: str
    blocks: tuple[BlockSeen, ...] = ()
    message: str = ""

    @property
    def answered(self) -> bool:
        """Whether it was answered to the end."""
        return self.outcome in ANSWERED

    @property
    def tokens(self) -> int:
        """Tokens that came, also of a request that failed later."""
        return sum(block.tokens for block in self.blocks)

    @property
    def first_block_s(self) -> float | None:
        """From when it was due to its first block: a client or server that lags behind does not hide its delay."""
        return self.blocks[0].at - self.due if self.blocks else None

    @property
    def latency_s(self) -> float:
        """From when it was due to its end."""
        return self.ended - self.due

    @property
    def block_s(self) -> list[float]:
        """From each block to the next; none for an answer of one block."""
        return [later.at - earlier.at for earlier, later in pairwise(self.blocks)]
