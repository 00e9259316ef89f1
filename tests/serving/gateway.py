"""The gateway as a process of its own, for tests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Running:
    """A gateway that listens.

    Args:
        url: of its root.
        log: its standard error.
        process: itself.
    """

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def records(self, event: str = "request") -> list[dict[str, Any]]:
        """The lines of its log with this event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    def record(self, request_id: str) -> dict[str, Any]:
        """The line of a request, which is written after its answer."""
        for _ in range(600):
            for record in self.records():
                if record["request_id"] == request_id:
                    return record
            time.sleep(0.05)
        raise AssertionError(f"no line of request {request_id} in the gateway's log")


@contextmanager
def running(grpc_url: str, log: Path, *options: str, files: int | None = None) -> Iterator[Running]:
    """A gateway in front of ``grpc_url`` on a free port of loopback, which may open so many files."""
    command = [sys.executable, "-m", "triton_repo.gateway", "--port=0", f"--grpc-url={grpc_url}", *options]
    few = ["prlimit", f"--nofile={files}"] if files else []
    with log.open("wb") as output, subprocess.Popen([*few, *command], stderr=output, stdout=output) as process:
        try:
            while not (said := re.search(r'"event": "listening", "url": "(.*?)"', log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            yield Running(said[1].replace("https://127.0.0.1", "https://localhost"), log, process)
        finally:
            process.kill()


def request(
    url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and JSON body of an answer."""
    sent = urllib.request.Request(url, body, {"content-type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(sent, timeout=60) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, json.loads(error.read())
