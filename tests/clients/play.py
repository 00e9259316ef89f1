"""One client's section of the page run as its reader would, and what is wrong with what it printed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tests.clients.page import SHOWN, Client, folder, not_printed
from triton_repo.demo.examples import PROJECT, Block

_LIMIT_S = 300  # for one example; an evaluation starts up for ten seconds
_GOOD = 0.9  # of the demo's held-out questions; a client that is not understood has 0
_VERSION = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"


@dataclass(frozen=True)
class Outcome:
    """What became of a client.

    Args:
        version: of the client.
        tried: what its examples ask for.
        scores: accuracies that it printed, in order.
        wrong: what is not as it must be; empty when all is.
    """

    version: str
    tried: str
    scores: tuple[float, ...]
    wrong: tuple[str, ...]


def play(client: Client, blocks: Iterable[Block], address: str, scratch: Path) -> Outcome:
    """Run the examples of a client.

    Args:
        client: whose they are.
        blocks: of its section.
        address: host and port of the server.
        scratch: an empty folder, where they run and leave their files.
    """
    surroundings = _surroundings(client)
    scores: list[float] = []
    wrong: list[str] = []
    (scratch / "build").symlink_to(PROJECT / "build")
    for command, text in _programs(client, blocks):
        text = text.replace("127.0.0.1:9000", address)
        try:
            done = subprocess.run(
                [*command, text], cwd=scratch, env=surroundings, capture_output=True, text=True, timeout=_LIMIT_S
            )
        except subprocess.TimeoutExpired:
            wrong.append(f"no end after {_LIMIT_S} s")
            continue
        if done.returncode != 0:
            wrong.append((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
        wrong += [f"not printed: {piece}" for piece in not_printed(text, done.stdout)]
        if not done.stdout.strip():
            wrong.append("printed nothing")
        if client.score:
            found = [float(n) for n in re.findall(rf"{client.score}([\d.]+)", done.stdout, re.MULTILINE)]
            wrong += ["no score"] * (not found) + [f"a score of {n}" for n in found if n < _GOOD]
            scores += found
    return Outcome(_version(client, surroundings), client.tried, tuple(scores), tuple(wrong))


def _programs(client: Client, blocks: Iterable[Block]) -> Iterator[tuple[list[str], str]]:
    """What runs a program, and the program: blocks of Python are one, those that follow know the names before."""
    for language, group in groupby(blocks, lambda block: block.language):
        texts = [block.text for block in group]
        if language == "python":
            assert client.environment is not None
            yield [str(folder(client.environment) / "bin" / "python"), "-c"], "".join(texts)
            continue
        for text in texts:
            lines = [] if re.search(SHOWN, text, re.MULTILINE) else [text]
            yield from ((["bash", "-euo", "pipefail", "-c"], line) for line in lines)


def _surroundings(client: Client) -> dict[str, str]:
    """Environment variables of its programs: its own commands first, nothing looked up online, no proxy to loopback."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHON"))}
    found |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    if client.environment is not None:
        found["PATH"] = f"{folder(client.environment) / 'bin'}{os.pathsep}{found['PATH']}"
    return found


def _version(client: Client, surroundings: dict[str, str]) -> str:
    if client.program is not None and shutil.which(client.program):
        done = subprocess.run([client.program, "--version"], capture_output=True, text=True, check=True)
        return done.stdout.split()[1]
    if client.package is None or client.environment is None:
        return client.about
    python = folder(client.environment) / "bin" / "python"
    done = subprocess.run([python, "-c", _VERSION, client.package], env=surroundings, capture_output=True, text=True)
    return done.stdout.strip() or client.about
