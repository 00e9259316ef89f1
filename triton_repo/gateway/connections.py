"""Open connections: as many as this process has files for, and none that waits for its client for ever.

Python's accept loop and uvicorn bound neither: without files left the loop fails two thousand times per second, and a
client that never finishes its request is waited for until the machine is restarted.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nemo_diffgemma.errors import require

# The system completes so many connections that asyncio's loop accepts later, so many in each of its rounds. One that
# gives way is closed up to four rounds later.
_BACKLOG, PER_ROUND = 1024, 32
# What this process needs besides: its log, key file, gRPC channel, and what is not closed yet.
_RESERVED = 128 + 4 * PER_ROUND
_LEAST, _MOST = 64, 4096
# After this a connection that was asked to close, and whose client does not take what is left for it, is cut.
_FAREWELL_S = 10.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """What a connection waits for its client to do.

    Args:
        seconds: that the client has.
        bytes_per_s: each so many that arrive give it another second; 0: none do.
        patient: others give way first when there is no room.
    """

    seconds: float
    bytes_per_s: int = 0
    patient: bool = False


# From the connection, with TLS's handshake, or from the first byte of a further request, to the end of its headers.
HEADERS = Phase(10.0)
# 32 MiB, the largest body, at least at half a megabit per second.
BODY = Phase(20.0, bytes_per_s=2**16, patient=True)
# A client that does not read its answer.
READS = Phase(60.0, patient=True)
CLOSES = Phase(_FAREWELL_S)


@dataclass(eq=False)
class Turn:
    """One connection, and whose turn it is.

    Args:
        socket: closed once the connection is.
        phase: what the client has to do; None: it is this server's turn.
        since: when the phase began.
        received: bytes since then.
        late: ends the connection, with an answer where one can be given; None before it speaks HTTP.
        cut: ends it at once; None before it speaks HTTP.
    """

    socket: socket.socket
    phase: Phase | None
    since: float
    received: int = 0
    late: Callable[[], None] | None = None
    cut: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self.number = self.socket.fileno()


class Connections:
    """All connections of this process.

    When there is no room for another, the one that has waited longest for its client gives way: first of those without
    a request, then of those with half of one. One whose request is being answered never does; where all are, the new
    one is closed.

    Args:
        files: that this process may have open.
        clock: seconds.

    Raises:
        FieldError: for too few files.
    """

    def __init__(self, files: int, clock: Callable[[], float] = time.monotonic):
        fix = "ulimit -n 1024"
        allowed = f"at least {_RESERVED + _LEAST} open files"
        require(files >= _RESERVED + _LEAST, field="ulimit -n", value=files, allowed=allowed, fix=fix)
        self.most = min(files - _RESERVED, _MOST)
        self._clock = clock
        self._turns: dict[int, Turn] = {}
        # In the order in which they began to wait: without a request, with half of one.
        self._waiting: tuple[dict[Turn, None], dict[Turn, None]] = ({}, {})

    def accept(self, connection: socket.socket) -> bool:
        """Take a new connection, or close it."""
        if len(self._turns) >= self.most:
            self._forget_closed()
        if len(self._turns) >= self.most and not self._make_room():
            connection.close()
            _LOG.warning("a connection was refused: as many as there is room for are being answered")
            return False
        turn = Turn(connection, None, self._clock())
        if (closed := self._turns.get(turn.number)) is not None:
            self._drop(closed)
        self._turns[turn.number] = turn
        self.wait(turn, HEADERS)
        return True

    def of(self, transport: Any) -> Turn:
        """The turn of an accepted connection."""
        return self._turns[transport.get_extra_info("socket").fileno()]

    def wait(self, turn: Turn, phase: Phase | None) -> None:
        """Wait for the client to do something else from now on, or, with None, for it no more."""
        for waiting in self._waiting:
            waiting.pop(turn, None)
        turn.phase, turn.since, turn.received = phase, self._clock(), 0
        if phase is not None:
            self._waiting[phase.patient][turn] = None

    def sweep(self) -> None:
        """End what is late; to be called now and then."""
        self._forget_closed()
        now = self._clock()
        for turn in list(self._turns.values()):
            if (phase := turn.phase) is None:
                continue
            more = turn.received / phase.bytes_per_s if phase.bytes_per_s else 0.0
            if now <= turn.since + phase.seconds + more:
                continue
            if phase is CLOSES or turn.late is None:
                _cut(turn)
                continue
            self.wait(turn, CLOSES)
            turn.late()

    def _make_room(self) -> bool:
        turn = next(iter(self._waiting[False]), None) or next(iter(self._waiting[True]), None)
        if turn is None:
            return False
        _LOG.warning("no room for another connection: the one that waited longest for its client gives way")
        _cut(turn)
        self._drop(turn)
        return True

    def _forget_closed(self) -> None:
        for turn in [turn for turn in self._turns.values() if turn.socket.fileno() < 0]:
            self._drop(turn)

    def _drop(self, turn: Turn) -> None:
        self.wait(turn, None)
        del self._turns[turn.number]


class Listener(socket.socket):
    """A listening socket whose connections have their limit.

    Args:
        connections: of the process.
        bound: a socket that has its address; belongs to this one from now on.
    """

    def __init__(self, connections: Connections, bound: socket.socket):
        super().__init__(bound.family, bound.type, bound.proto, fileno=bound.detach())
        self._connections = connections

    def listen(self, _backlog: int = 0) -> None:
        """asyncio's number is of its rounds, too."""
        super().listen(_BACKLOG)

    def accept(self) -> tuple[socket.socket, Any]:
        """As a socket's, for what there is room for."""
        connection, address = super().accept()
        if not self._connections.accept(connection):
            # asyncio's accept loop takes that for a client which has gone meanwhile, and goes on.
            raise ConnectionAbortedError
        return connection, address


def _cut(turn: Turn) -> None:
    if turn.cut is not None:
        turn.cut()
        return
    try:
        turn.socket.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended by itself
