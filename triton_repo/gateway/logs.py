"""Logs: one JSON object per line, without anything that a request said."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

_EVERY_S = 10.0


class JsonFormatter(logging.Formatter):
    """The record's message as ``event``, and the fields given as ``extra={"fields": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage().strip(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0]:
            # Where, and not what: an exception's text may hold a value of the request.
            line["exception"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])
            line["stack"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line)


class Sparing(logging.Filter):
    """Of warnings and errors of a kind, from the same line of code with the same first line of text, one per interval;
    those that were left out are counted in ``repeated`` of the next one, or of :meth:`tell`'s.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, int, str], tuple[float, int, logging.LogRecord]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or hasattr(record, "repeated"):
            return True
        kind = (record.pathname, record.lineno, record.getMessage().strip().partition("\n")[0])
        since, left_out, _ = self._seen.get(kind, (float("-inf"), 0, record))
        if self._clock() < since + _EVERY_S:
            self._seen[kind] = (since, left_out + 1, record)
            return False
        self._seen[kind] = (self._clock(), 0, record)
        if left_out:
            _count(record, left_out)
        return True

    def tell(self) -> None:
        """Write what was left out, once its interval is over; to be called now and then."""
        now = self._clock()
        for kind, (since, left_out, record) in list(self._seen.items()):
            if now < since + _EVERY_S:
                continue
            if not left_out:
                del self._seen[kind]
                continue
            self._seen[kind] = (now, 0, record)
            _count(record, left_out)
            record.created = time.time()
            logging.getLogger(record.name).handle(record)


def _count(record: logging.LogRecord, left_out: int) -> None:
    record.repeated = left_out
    record.fields = {**getattr(record, "fields", {}), "repeated": left_out}


def start() -> Sparing:
    """Write every logger's records from INFO on to standard error, sparingly."""
    sparing = Sparing()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(sparing)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    return sparing
